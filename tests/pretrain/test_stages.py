"""The whole path on a corpus made here: tokenizer, tokens, both stages, kill and resume, rows, export, drafts."""

from __future__ import annotations

import json
import lzma
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from compress.rows8 import FILE, load_rows8
from pretrain import tokenizer as tk
from pretrain.__main__ import main
from pretrain.measure import by_hand, drafts, score
from pretrain.model import Shape
from pretrain.pack import Phase, plan, read_tokens
from pretrain.train import LAST, TrainConfig, load_model, train

SMALL = Shape(vocab=400, hidden=32, layers=2, heads=2, kv_heads=1, ffn=48, context=512)
QUICK = TrainConfig(T=256, rows=4, micro=2, warmup=2, validate_every=1000)
PEOPLE = ("anna.lee", "tom.ford", "maria.lopez", "ivan.petrov", "mei.chen", "omar.haddad")


def _mail(n: int) -> dict[str, object]:
    rng = random.Random(n)
    who, to = rng.sample(PEOPLE, 2)
    day, hour = rng.choice(("Monday", "Tuesday", "Friday")), rng.randint(1, 12)
    first, me = to.split(".")[0].title(), who.split(".")[0].title()
    text = f"{first},\n\nThe review of plan {n} moves to {day} at {hour}pm. Please send me the draft.\n\nThanks,\n{me}"
    quoted = f"From: {first} Ford\nTo: {me}\nSubject: plan {n}\n\nWhen is the review of plan {n}?"
    return {"from": f"{who}@enron.com", "to": f"{to}@enron.com", "subject": f"Plan {n}", "text": text, "quoted": quoted}


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    with lzma.open(path, "wt", encoding="utf-8") as f:
        f.writelines(json.dumps(r) + "\n" for r in rows)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """corpora/, base/ with a tokenizer, data/ with token files."""
    root = tmp_path_factory.mktemp("pretrain")
    (root / "corpora").mkdir()
    for name in ("enron_mail", "enron_other", "hrc"):
        _write(root / "corpora" / f"{name}.jsonl.xz", [_mail(n) for n in range(150)])
    for name in ("wiki_a", "wiki_b", "wiki_c", "wiki_d", "wiki_2018", "textbooks", "workplace", "dialogues", "novels"):
        _write(
            root / "corpora" / f"{name}.jsonl.xz",
            [{"text": f"Plans\nA plan {n} is a list of steps. " * 9} for n in range(9)],
        )
    corpora, base, data = (str(root / d) for d in ("corpora", "base", "data"))
    main(
        ["tokenizer", "--corpora", corpora, "--tokenizer", base, "--vocab", "400", "--share", "0.5", "--context", "512"]
    )
    main(["prepare", "--corpora", corpora, "--tokenizer", base, "--data", data, "--versions", "1", "--processes", "1"])
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


def test_a_text_is_read_once_before_it_is_read_again(room: Path):
    tokens = read_tokens([room / "data" / "prose-wiki_a.npz"])
    p = plan(room / "data", [Phase(len(tokens.ids), {"prose-wiki_a": 1.0})], 64, 3)
    read = np.concatenate([np.arange(b + 1, b + n) for b, n in zip(p.begin, p.size, strict=True)])
    assert len(read) - len(np.unique(read)) <= 0.05 * len(read)


def test_a_killed_run_ends_as_one_that_was_not(room: Path, tmp_path: Path):
    whole = train("pretrain", 20_000, room / "data", tmp_path / "a", QUICK, SMALL)
    train("pretrain", 20_000, room / "data", tmp_path / "b", QUICK, SMALL, stop_after=7)
    resumed = train("pretrain", 20_000, room / "data", tmp_path / "b", QUICK, SMALL)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    first, *_, last = [json.loads(x) for x in (tmp_path / "a" / "log.jsonl").read_text().splitlines() if "loss" in x]
    assert last["loss"] < first["loss"] - 0.3


def test_both_stages_end_in_a_model_that_plain_transformers_loads(room: Path, tmp_path: Path):
    data, base = str(room / "data"), str(room / "base")
    shape = ["--hidden", "32", "--layers", "2", "--heads", "2", "--kv_heads", "1", "--ffn", "48", "--context", "512"]
    quick = [
        "--T",
        "512",
        "--rows",
        "2",
        "--micro",
        "2",
        "--warmup",
        "2",
        "--tokens",
        "1e4",
        "--data",
        data,
        "--tokenizer",
        base,
    ]
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
