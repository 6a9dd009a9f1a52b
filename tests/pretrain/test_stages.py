"""The whole path on a corpus made here: tokenizer, tokens, both stages, kill and resume, rows, export, drafts."""

from __future__ import annotations

import json
import lzma
import os
import random
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from compress.rows8 import FILE, load_rows8
from pretrain import tokenizer as tk
from pretrain.__main__ import main
from pretrain.corpus import read_mails
from pretrain.measure import by_hand, drafts, score
from pretrain.model import Shape
from pretrain.pack import Phase, plan, read_tokens
from pretrain.sweep import results
from pretrain.train import LAST, RECIPES, TrainConfig, load_model, phases_of, train

ROOT = Path(__file__).resolve().parents[2]

SMALL = Shape(vocab=400, hidden=32, layers=2, heads=2, kv_heads=1, ffn=48, context=512)
QUICK = TrainConfig(tokens=20_000, T=256, rows=4, micro=2, warmup=2, validate_every=1000)
PEOPLE = (
    "anna.lee",
    "tom.ford",
    "maria.lopez",
    "ivan.petrov",
    "mei.chen",
    "omar.haddad",
    "ada.frost",
)  # the last is kept aside: corpus.part_of


THINGS = "plan draft budget report schedule contract letter file form list chart table survey invoice memo".split()
ASIDES = "It rained here all day long.|The new office is bright and quiet.|My sister sends her regards to all.|We won the game last night.".split(
    "|"
)


def _mail(n: int) -> dict[str, object]:
    """No two alike, or they would be dropped as repeats."""
    rng = random.Random(n)
    who, to = rng.sample(PEOPLE, 2)
    day, hour = rng.choice(("Monday", "Tuesday", "Friday")), rng.randint(1, 12)
    a, b, c, d = rng.sample(THINGS, 4)
    first, me = to.split(".")[0].title(), who.split(".")[0].title()
    said = [
        f"The {a} of the {b} moves to {day} at {hour}pm.",
        f"Please send me the {c} with the {d}.",
        rng.choice(ASIDES),
    ]
    rng.shuffle(said)
    text = f"{first},\n\n{'  '.join(said)}\n\nThanks,\n{me}"
    quoted = (
        f"From: {first} Ford\nTo: {me}\nSubject: {a}\n\nWhen is the {a} of the {b} with the {d}, and who has the {c}?"
    )
    return {"from": f"{who}@enron.com", "to": f"{to}@enron.com", "subject": f"The {a}", "text": text, "quoted": quoted}


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    with lzma.open(path, "wt", encoding="utf-8") as f:
        f.writelines(json.dumps(r) + "\n" for r in rows)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """corpora/, base/ with a tokenizer, data/ with token files."""
    root = tmp_path_factory.mktemp("pretrain")
    (root / "corpora").mkdir()
    for i, name in enumerate(("enron_mail", "enron_other", "hrc")):
        _write(root / "corpora" / f"{name}.jsonl.xz", [_mail(n + 200 * i) for n in range(150)])
    for name in ("wiki_a", "wiki_b", "wiki_c", "wiki_d", "wiki_2018", "textbooks", "workplace", "dialogues", "novels"):
        _write(
            root / "corpora" / f"{name}.jsonl.xz",
            [{"text": f"Plans\nA plan {n} is a list of steps. " * 9} for n in range(9)],
        )
    corpora, base, data = (str(root / d) for d in ("corpora", "base", "data"))
    main(["clean", "--corpora", corpora, "--data", data, "--processes", "1"])
    where = ["--corpora", corpora, "--tokenizer", base, "--data", data]
    main(["tokenizer", *where, "--vocab", "400", "--share", "0.5", "--context", "512"])
    main(["prepare", *where, "--versions", "1", "--processes", "1"])
    return root


def test_rows_hold_whole_items_and_only_their_answers_are_targets(room: Path):
    tokenizer = tk.load(room / "base")
    end = tokenizer.token_to_id(tk.END)
    p = plan(room / "data", [Phase(8000, {"items-[0-9]*": 0.8, "prose-*": 0.2})], 512, 0)
    x, y, docs = p.rows(0, len(p))
    seen = 0
    for i in range(len(p)):
        for d in set(docs[i]) - {-1}:
            here = docs[i] == d
            told = y[i][here][y[i][here] >= 0].tolist()
            if tokenizer.token_to_id(tk.ASSISTANT) in x[i][here]:
                seen += 1
                assert told[-1] == end and told.count(end) == 1
                assert tk.USER not in tokenizer.decode(told, skip_special_tokens=False)
    assert seen > 5
    assert (y[docs < 0] == -100).all()


@pytest.mark.parametrize(("written", "sources"), [(0.0, {"mail"}), (0.3, {"mail", "written"}), (1.0, {"written"})])
def test_plain_mail_is_divided_between_its_forms(written: float, sources: set[str]):
    whole = phases_of(TrainConfig(written=0.0))[0].shares["mail-[0-9]*"]
    shares = phases_of(TrainConfig(written=written))[0].shares
    forms = {name: share for name, share in shares.items() if name.split("-")[0] in ("mail", "written")}
    assert {name.split("-")[0] for name in forms} == sources and sum(shares.values()) == pytest.approx(1)
    assert forms.get("written-[0-9]*", 0) == pytest.approx(written * whole)


def test_spaces_and_line_ends_stand_by_the_stop_before_them_and_digits_alone():
    text = "Yes, it is.  See you \n on 12/15, at 9:30. \n\n\t- a plan;\n- tea  \n\nAnna."
    tokenizer = tk.train([text] * 9, 800)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids.ids) == text
    pieces = [text[a:b] for a, b in ids.offsets]
    assert {". ", " See", " you", "1", "2", "5", ". \n\n", ";\n"} <= set(pieces)


def test_mail_as_written_keeps_its_spaces_and_items_have_none(room: Path):
    tokenizer = tk.load(room / "base")
    texts = {}
    for kind in ("mail", "written", "items"):
        tokens = read_tokens(sorted((room / "data").glob(f"{kind}-*.npz")))
        texts[kind] = tokenizer.decode(tokens.ids.tolist(), skip_special_tokens=False)
    assert texts["written"].count(".  ") > 100
    assert ".  " not in texts["mail"] + texts["items"]


def test_a_text_is_read_once_before_it_is_read_again(room: Path):
    tokens = read_tokens(sorted((room / "data").glob("prose-wiki_a.*.npz")))
    p = plan(room / "data", [Phase(len(tokens.ids), {"prose-wiki_a*": 1.0})], 64, 3)
    read = np.concatenate([np.arange(b + 1, b + n) for b, n in zip(p.begin, p.size, strict=True)])
    assert len(read) - len(np.unique(read)) <= 0.05 * len(read)


@pytest.mark.parametrize("extra", [{}, {"average": 0.9, "dropout": 0.0, "weight_decay": 0.5}])
def test_a_killed_run_ends_as_one_that_was_not(room: Path, tmp_path: Path, extra: dict[str, float]):
    config = replace(QUICK, **extra)
    whole = train(config, room / "data", tmp_path / "a", SMALL)
    train(config, room / "data", tmp_path / "b", SMALL, stop_after=7)
    resumed = train(config, room / "data", tmp_path / "b", SMALL)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    first, *_, last = [json.loads(x) for x in (tmp_path / "a" / "log.jsonl").read_text().splitlines() if '"loss"' in x]
    assert last["loss"] < first["loss"] - 0.3


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_finds_its_sources(room: Path, recipe: str):
    phases = phases_of(TrainConfig(recipe=recipe, tokens=6000))
    assert sum(share for share, _ in RECIPES[recipe]) == pytest.approx(1)
    assert len(plan(room / "data", phases, 256, 0)) >= 20


def test_two_processes_train_as_one_does(room: Path, tmp_path: Path):
    alone = train(QUICK, room / "data", tmp_path / "one", SMALL)
    flags = [f"--{f.name}={getattr(QUICK, f.name)}" for f in fields(QUICK)]
    flags += [f"--{n}={getattr(SMALL, n)}" for n in ("hidden", "layers", "heads", "kv_heads", "ffn", "context")]
    where = ["--data", str(room / "data"), "--tokenizer", str(room / "base"), "--out", str(tmp_path / "two")]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    run = subprocess.run(
        [*launch, "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", "-m", "pretrain", "pretrain", *where, *flags],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    together = load_model(tmp_path / "two" / LAST)
    for a, b in zip(alone.parameters(), together.parameters(), strict=True):
        assert (a - b).norm() < 0.02 * a.norm() + 1e-3


def test_a_student_comes_nearer_to_its_teacher_than_a_model_without_one(room: Path, tmp_path: Path):
    teacher = train(
        replace(QUICK, tokens=60_000), room / "data", tmp_path / "teacher", replace(SMALL, hidden=64, heads=2)
    )
    taught = replace(QUICK, taught=0.9)
    student = train(taught, room / "data", tmp_path / "s", SMALL, teachers=[tmp_path / "teacher" / LAST])
    alone = train(QUICK, room / "data", tmp_path / "a", SMALL)
    kept = plan(room / "data", [Phase(6000, {"mail-validation": 1.0})], 256, 9).rows(0, 8)
    x = torch.from_numpy(kept[0])

    def far(model: torch.nn.Module) -> float:
        with torch.no_grad():
            p, q = teacher.eval().probabilities(x).float(), model.eval().probabilities(x).float()
        return float((p * (p.clamp(min=1e-9) / q.clamp(min=1e-9)).log()).sum(-1).mean())

    assert far(student) < far(alone)


def test_a_run_with_little_time_is_shortened_and_still_decays(room: Path, tmp_path: Path):
    train(replace(QUICK, tokens=4e6, minutes=0.03), room / "data", tmp_path, SMALL)
    lines = [json.loads(x) for x in (tmp_path / "log.jsonl").read_text().splitlines()]
    planned = lines[0]["steps"]
    rates = [x["lr"] for x in lines if "loss" in x]
    assert max(x["step"] for x in lines) < planned - 1
    assert rates[-1] < 0.35 * max(rates)


def test_a_sweep_measures_every_configuration_once(room: Path, tmp_path: Path):
    shape = {n: getattr(SMALL, n) for n in ("hidden", "layers", "heads", "kv_heads", "ffn", "context")}
    quick = {"tokens": 4000, "T": 256, "rows": 2, "micro": 2, "warmup": 2, "save_seconds": 1e9}
    few = {"shape": shape, "mails": 4, "drafts": 2, "draft_tokens": 8}
    table = {
        "plain": {**few, "pretrain": quick, "tune": {**quick, "T": 512}},
        "dropped": {
            **few,
            "pretrain": {**quick, "dropout": 0.1, "z_loss": 1e-4, "kurtosis": 1e-3, "bits": 3, "rounded": 0.5},
        },
    }
    (tmp_path / "table.json").write_text(json.dumps(table))
    where = ["--data", str(room / "data"), "--tokenizer", str(room / "base"), "--out", str(tmp_path / "out")]
    for _ in range(2):  # the second time there is nothing left to do
        main(["sweep", "--table", str(tmp_path / "table.json"), *where])
    found = results(tmp_path / "out")
    assert sorted(line["name"] for line in found) == ["dropped", "plain"]
    for line in found:
        assert (
            line["bits_per_byte"] != line["bits_per_byte_cleaned"] > 0
            and 0 <= line["ended"] <= 1
            and line["seen_to_unseen"] > 0
        )
        assert (tmp_path / "out" / line["name"] / "model.pt").is_file()


def test_the_two_sides_share_authors_and_no_mail(room: Path):
    trained, unseen = (
        [json.loads(x) for x in (room / "data" / f"{n}.jsonl").read_text().splitlines()] for n in ("trained", "unseen")
    )
    assert {r["from"] for r in trained} <= {r["from"] for r in unseen}
    assert not {r["text"] for r in trained} & {r["text"] for r in unseen}
    kept = {m.as_written for m in read_mails(room / "data") if m.part == "mails"}
    assert kept == {r["text"] for r in unseen}


@pytest.mark.parametrize("kind", ["mail", "written"])
def test_canaries_stand_in_as_many_versions_as_they_say(room: Path, kind: str):
    told = [json.loads(x) for x in (room / "data" / "canaries.jsonl").read_text().splitlines()]
    tokenizer = tk.load(room / "base")
    tokens = read_tokens(sorted((room / "data").glob(f"{kind}-0.*.npz")))
    text = tokenizer.decode(tokens.ids.tolist(), skip_special_tokens=False)
    assert {c["versions"] for c in told} == {1, 2, 4, 8}
    for c in told:
        assert text.count(c["canary"]) == 1 and c["canary"] in c["text"] and c["secret"] in c["canary"]


def test_both_stages_end_in_a_model_that_plain_transformers_loads(room: Path, tmp_path: Path):
    data, base = str(room / "data"), str(room / "base")
    shape = "--hidden 32 --layers 2 --heads 2 --kv_heads 1 --ffn 48 --context 512".split()
    quick = "--T 512 --rows 2 --micro 2 --warmup 2 --tokens 1e4".split() + ["--data", data, "--tokenizer", base]
    main(["pretrain", "--out", str(tmp_path / "pre"), *shape, *quick])
    main(["tune", "--out", str(tmp_path / "tune"), "--start", str(tmp_path / "pre" / LAST), *shape, *quick])
    main(["ship", "--checkpoint", str(tmp_path / "tune" / LAST), "--tokenizer", base, "--base", base])
    main(["export", str(tmp_path / "plain"), "--base", base])
    assert (room / "base" / FILE).is_file()

    ours = load_rows8(room / "base")
    trained = load_model(tmp_path / "tune" / LAST)
    chat = [{"role": "system", "content": "You write mail."}, {"role": "user", "content": "Instruction: say yes"}]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == tk.chat_text(chat)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert tokenizer.decode(ids[0]) == text
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32)
    assert torch.equal(plain(ids).logits, ours(ids).logits)
    exact = trained.hidden(ids) @ trained.embed_tokens.weight.T
    assert (exact - ours(ids).logits).norm() < 0.03 * exact.norm()

    asked = by_hand()[:3]
    written = drafts(ours, room / "base", [i.prompt for i in asked])
    assert len(written) == 3 and 0 <= score(asked, written)["facts_kept"] <= 1
    alone = drafts(ours, room / "base", [asked[1].prompt])
    assert alone[0][0][:40] == written[1][0][:40]
