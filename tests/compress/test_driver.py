"""Compressing a whole model: what comes out loads and predicts, a killed run ends as an undisturbed one, mistakes are named."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3TextConfig, Phi3Config, Qwen3Config

from compress import model, unfinished
from compress.checkpoint import FILE, load_model
from compress.errors import CompressError
from compress.linear import quantized_layers
from compress.methods import METHODS
from compress.model import Options, compress_model
from compress.progress import duration
from compress.text import load_tokenizer, token_sequences

ROOT = Path(__file__).parents[2]
UP = "model.layers.1.mlp.up_proj.weight"
SMALL = Options(sequences=6, length=24, held_out=2, batch=48)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text(
        "Hello Anna, the review works on Thursday at 10:00. Please bring number 100. All the best, Mara.\n" * 60
    )
    return path


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_model(folder)(torch.arange(2, 60).view(2, 29)).logits


def test_more_bits_lose_less(tiny_base: Path, text: Path, tmp_path: Path):
    exact, errors, sizes = logits(tiny_base), [], []
    for bits in (2, 4, 8):
        report = compress_model(tiny_base, tmp_path / f"{bits}", "rtn", bits, text, SMALL)
        errors.append((logits(tmp_path / f"{bits}") - exact).norm())
        sizes.append(report.bits["body"])
    assert errors[0] > errors[1] > errors[2] and sizes[0] < sizes[1] < sizes[2]


def test_the_report_tells_what_lies_in_the_directory(tiny_base: Path, text: Path, tmp_path: Path):
    out = tmp_path / "out"
    report = compress_model(tiny_base, out, "gptq", 3, text, SMALL)
    assert report.summary() | {"out": str(out)} == report.summary()
    assert set(report.summary()) >= {"bits_per_weight", "bytes", "seconds", "peak_memory_bytes", "out"}
    assert len(report.layers) == 14 and all(0 < row.error < 0.2 and row.tokens == 144 for row in report.layers)
    tensors = load_file(out / FILE)
    weights = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(tiny_base).parameters())
    assert report.bits["all"] == pytest.approx(sum(t.nbytes for t in tensors.values()) * 8 / weights)
    assert 3 < report.bits["body"] < 4.5 and 8 < report.bits["embeddings"] == report.bits["head"] < 9
    assert json.loads((out / "report.json").read_text())["settings"]["bits"] == 3
    assert (out / "tokenizer.json").is_file() and not (tmp_path / "out.unfinished").exists()


FAMILIES = {
    "qwen3": Qwen3Config(head_dim=16, attention_bias=True, **(sizes := {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 80,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    })),
    "phi3": Phi3Config(**sizes, tie_word_embeddings=False),
    "gemma3": Gemma3TextConfig(**sizes, head_dim=16, sliding_window=4, layer_types=["sliding_attention", "full_attention"]),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ends", [0, 8])
def test_other_families_come_back_from_their_own_samples(family: str, ends: int, tmp_path: Path):
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(FAMILIES[family]).eval()
    made.save_pretrained(tmp_path / "source")
    compress_model(tmp_path / "source", tmp_path / "out", "rtn", 8, None, replace(SMALL, embeddings=ends, head=ends))
    exact, found = logits(tmp_path / "source"), logits(tmp_path / "out")
    assert len(quantized_layers(load_model(tmp_path / "out"))) == 14 - (6 if family == "phi3" else 0) + (
        2 if ends else 0
    )
    assert (found - exact).norm() < 0.03 * exact.norm()


EXTRAS = {
    "eora": {"eora": 4},
    "guided": {"guided": 2},
    "rotated heads": {"rotate": "heads"},
    "rotated": {"rotate": "full"},
    "tuned": {"tune": 2},
    "tuned whole": {"finetune": 2},
    "sequential": {"sequential": True, "guided": 2},
    "on disk": {"memory": 0.0, "tune": 1},
}


@pytest.mark.parametrize("name", EXTRAS)
def test_every_extra_gives_a_model_that_predicts(name: str, tiny_base: Path, text: Path, tmp_path: Path):
    exact = logits(tiny_base)
    report = compress_model(tiny_base, tmp_path / "out", "gptq", 8, text, replace(SMALL, **EXTRAS[name]))
    assert (
        logits(tmp_path / "out") - exact
    ).norm() < 0.15 * exact.norm()  # the tiny model amplifies a rounding eightfold
    for tuned in report.tuned:
        assert tuned["after"] <= tuned["before"]


def test_a_low_rank_repair_lowers_every_layers_error(tiny_base: Path, text: Path, tmp_path: Path):
    plain, repaired = (
        compress_model(tiny_base, tmp_path / f"{rank}", "rtn", 2, text, replace(SMALL, eora=rank)).layers
        for rank in (0, 8)
    )
    first = [row for row in plain if ".0." in row.name]  # later blocks read other inputs
    assert first and all(b.error < a.error for a, b in zip(first, repaired, strict=False))


def test_sizes_between_are_mixed_from_two(tiny_base: Path, text: Path, tmp_path: Path):
    body = [compress_model(tiny_base, tmp_path / f"{b}", "lnq", b, text, SMALL).bits["body"] for b in (2, 2.5, 3)]
    assert body[1] == pytest.approx((body[0] + body[2]) / 2, abs=0.15)
    report = json.loads((tmp_path / "2.5" / "report.json").read_text())
    assert report["settings"]["mixed_with"]["bits"] == 3 and report["settings"]["config"]["bits"] == 2
    with pytest.raises(CompressError, match="compressed already"):
        compress_model(tmp_path / "2.5", tmp_path / "again", "rtn", 2, text, SMALL)


def test_int8_codebooks_lie_in_the_file_as_bytes_once_for_layers_that_share_them(
    tiny_base: Path, text: Path, tmp_path: Path
):
    whole = {"shape": "2x4g4", "int8": True}
    report = compress_model(tiny_base, tmp_path / "out", "aqlm", 2, text, replace(SMALL, tune=1), whole)
    tensors = load_file(tmp_path / "out" / FILE)
    books = {n: t for n, t in tensors.items() if n.endswith(".codebooks")}
    assert len(books) == 2 * 4 and {(t.dtype, t.shape) for t in books.values()} == {(torch.int8, (2, 16, 4))}
    steps = [t for n, t in tensors.items() if n.endswith("decode.step")]
    assert len(steps) == 2 * 4 and {t.dtype for t in steps} == {torch.float16}
    body = [t for n, t in tensors.items() if ".layers." in n and ".quantized." in n]
    weights = sum(math.prod(row.shape) for row in report.layers)
    assert report.bits["body"] == pytest.approx(8 * sum(t.nbytes for t in body) / weights)
    again = load_model(tmp_path / "out").model.layers[0].self_attn
    assert again.q_proj.quantized.decode.codebooks is again.v_proj.quantized.decode.codebooks
    assert again.q_proj.quantized.decode.step is again.v_proj.quantized.decode.step


def test_the_same_seed_gives_the_same_file(tiny_base: Path, tmp_path: Path):
    files = []
    for name in "ab":
        compress_model(tiny_base, tmp_path / name, "gptq", 3, None, SMALL)
        files.append((tmp_path / name / FILE).read_bytes())
    assert files[0] == files[1]


KILLED = """
import os, signal, sys
from pathlib import Path
from compress import model, unfinished
save = unfinished.Unfinished.save
def save_and_die(self, index, block, notes):
    save(self, index, block, notes)
    os.kill(os.getpid(), signal.SIGKILL)
unfinished.Unfinished.save = save_and_die
model.compress_model(sys.argv[1], sys.argv[2], "gptq", 3, Path(sys.argv[3]), model.Options(**eval(sys.argv[4])))
"""


def test_a_killed_run_ends_as_an_undisturbed_one(tiny_base: Path, text: Path, tmp_path: Path):
    options = {"sequences": 6, "length": 24, "held_out": 2, "batch": 48, "tune": 1, "guided": 2, "finetune": 1}
    arguments = [str(tiny_base), str(tmp_path / "killed"), str(text), repr(options)]
    ran = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=ROOT, capture_output=True)
    assert ran.returncode == -signal.SIGKILL, ran.stderr.decode()
    left = tmp_path / "killed.unfinished"
    assert (left / "0.safetensors").is_file() and not (tmp_path / "killed").exists()
    written = (left / "0.safetensors").stat().st_mtime_ns
    (left / "1.part").write_bytes(b"torn")
    seen = []
    keep, unfinished.Unfinished.remove = (
        unfinished.Unfinished.remove,
        lambda self: seen.append((left / "0.safetensors").stat().st_mtime_ns),
    )
    try:
        compress_model(tiny_base, tmp_path / "killed", "gptq", 3, text, Options(**options))
    finally:
        unfinished.Unfinished.remove = keep
    assert seen == [written], "the first block was not done again"
    compress_model(tiny_base, tmp_path / "whole", "gptq", 3, text, Options(**options))
    assert (tmp_path / "killed" / FILE).read_bytes() == (tmp_path / "whole" / FILE).read_bytes()


def test_what_other_settings_left_is_not_taken_up(tiny_base: Path, text: Path, tmp_path: Path, capfd):
    left = tmp_path / "out.unfinished"
    left.mkdir()
    (left / "fingerprint").write_text("of another run")
    (left / "0.safetensors").write_bytes(b"of another run")
    compress_model(tiny_base, tmp_path / "out", "rtn", 3, text, SMALL)
    assert "other settings" in capfd.readouterr().err and (tmp_path / "out" / FILE).is_file()


@pytest.mark.parametrize("method", METHODS)
def test_what_every_method_writes_can_be_tuned(method: str, tiny_base: Path, text: Path, tmp_path: Path):
    options = replace(SMALL, sequences=12, tune=1, finetune=2)
    report = compress_model(tiny_base, tmp_path / "out", method, 2, text, options)
    assert report.finetuned["after"] < report.finetuned["before"]
    assert all(block["after"] <= block["before"] for block in report.tuned)
    assert logits(tmp_path / "out").isfinite().all()


def test_tuning_the_whole_model_lowers_its_divergence(tiny_base: Path, text: Path, tmp_path: Path):
    found = {}
    for epochs in (0, 8):
        options = replace(SMALL, sequences=24, finetune=epochs)
        found[epochs] = compress_model(tiny_base, tmp_path / f"{epochs}", "rtn", 3, text, options)
    tuned = found[8].finetuned
    assert found[0].finetuned is None and tuned["after"] < 0.9 * tuned["before"] and tuned["epoch"] > 0
    assert found[8].bits == found[0].bits, "codes and sizes stay"
    assert json.loads((tmp_path / "8" / "report.json").read_text())["finetuned"]["after"] == tuned["after"]
    ids = token_sequences(text, load_tokenizer(tiny_base), 26, 24, 0)[24:]
    with torch.no_grad():
        true, new = (load_model(f)(ids).logits.log_softmax(-1) for f in (tiny_base, tmp_path / "8"))
    kl = (true.exp() * (true - new)).sum(-1).mean().item()
    assert kl == pytest.approx(tuned["after"], rel=0.02), "the file holds what was judged"


def test_a_run_stopped_while_the_whole_model_is_tuned_keeps_its_blocks(
    tiny_base: Path, text: Path, tmp_path: Path, monkeypatch, capfd
):
    def stop(*_, **__) -> None:
        raise KeyboardInterrupt

    options = replace(SMALL, finetune=1)
    with monkeypatch.context() as change, pytest.raises(KeyboardInterrupt):
        change.setattr(model, "tune_model", stop)
        compress_model(tiny_base, tmp_path / "stopped", "gptq", 3, text, options)
    assert (tmp_path / "stopped.unfinished" / "1.safetensors").is_file() and not (tmp_path / "stopped").exists()
    for name in ("stopped", "whole"):
        compress_model(tiny_base, tmp_path / name, "gptq", 3, text, options)
    assert capfd.readouterr().err.count(", found") == 2, "both blocks lay there, once"
    assert (tmp_path / "stopped" / FILE).read_bytes() == (tmp_path / "whole" / FILE).read_bytes()


WORKER = """
import sys
from pathlib import Path
from compress.model import Options, compress_model
options = Options(sequences=7, length=24, held_out=2, batch=48, tune=1, guided=2, finetune=1)
print(compress_model(sys.argv[1], sys.argv[2], "gptq", 3, Path(sys.argv[3]), options).bits["body"])
"""


def test_two_processes_do_what_one_does(tiny_base: Path, text: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "worker.py").write_text(WORKER)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    launch += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", str(tmp_path / "worker.py")]
    run = subprocess.run(
        [*launch, str(tiny_base), str(tmp_path / "two"), str(text)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    options = replace(SMALL, sequences=7, tune=1, guided=2, finetune=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # the two work on the CPU too
    one = compress_model(tiny_base, tmp_path / "one", "gptq", 3, text, options)
    two = json.loads((tmp_path / "two" / "report.json").read_text())
    assert two["bits"] == one.bits and two["settings"]["processes"] == 2
    for a, b in zip(one.layers, two["layers"], strict=True):
        assert a.name == b["name"] and a.tokens == b["tokens"] == 168
        assert b["error"] == pytest.approx(a.error, rel=0.25), "sums in another order, nothing more"
    for a, b in zip([*one.tuned, one.finetuned], [*two["tuned"], two["finetuned"]], strict=True):
        assert b["after"] < b["before"] == pytest.approx(a["before"], rel=0.2)
    exact = logits(tiny_base)
    errors = [(logits(tmp_path / name) - exact).norm().item() for name in ("one", "two")]
    assert errors[1] == pytest.approx(errors[0], rel=0.2)


MISTAKES = {
    "method": ({"method": "magic"}, "unknown method 'magic': choose one of rtn, gptq"),
    "bits": ({"bits": 0.3}, "not 0.3"),
    "many bits": ({"bits": 12}, "not 12"),
    "a setting": ({"settings": {"colour": 1}}, "rtn has no setting 'colour'"),
    "no directory": ({"source": "/no/such/model"}, "no model directory '/no/such/model'"),
    "hub without network": ({"source": "nobody/no-such-model"}, "could not be fetched"),
    "head bits": ({"options": replace(SMALL, head=2)}, "head is 2 bits"),
    "rotation": ({"options": replace(SMALL, rotate="left")}, "rotate is 'left'"),
    "too long": ({"options": replace(SMALL, length=5000)}, "at most 1024"),
    "too much": ({"options": replace(SMALL, sequences=5000)}, "sequences of 24 need 115000"),
    "tune": ({"options": replace(SMALL, tune=-1)}, "tune is -1"),
    "guided": ({"options": replace(SMALL, guided=-1)}, "guided is -1"),
    "memory": ({"options": replace(SMALL, memory=math.nan)}, "memory is nan"),
    "a search": ({"settings": {"search": -1}}, "a search of 0 or more"),
    "mail": ({"calibration": Path("mine.mbox")}, "is mail"),
    "no sequences": ({"options": replace(SMALL, sequences=0)}, "sequences is 0"),
    "no text": ({"calibration": Path("/no/such.txt")}, "'/no/such.txt' cannot be read"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_and_leaves_nothing(name: str, tiny_base: Path, text: Path, tmp_path: Path):
    change, words = MISTAKES[name]
    call = {"source": tiny_base, "method": "rtn", "bits": 4, "calibration": text, "options": SMALL} | change
    with pytest.raises(CompressError) as error:
        compress_model(out=tmp_path / "out", **call)
    assert words in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 300
    assert not list(tmp_path.iterdir())


def damaged(source: Path, folder: Path, layer: str) -> Path:
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[layer][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_weight_that_is_not_finite_is_named(tiny_base: Path, text: Path, tmp_path: Path):
    source = damaged(tiny_base, tmp_path / "source", "model.layers.1.mlp.up_proj.weight")
    with pytest.raises(CompressError, match=r"'model\.layers\.1\.mlp\.up_proj'"):
        compress_model(source, tmp_path / "out", "rtn", 4, text, SMALL)


def test_a_directory_of_something_else_is_never_overwritten(tiny_base: Path, text: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(CompressError, match="no compressed model"):
        compress_model(tiny_base, tmp_path / "out", "rtn", 4, text, SMALL)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "mine"


def test_nothing_of_anybody_elses_is_removed(tiny_base: Path, text: Path, tmp_path: Path):
    """Not a directory that has the name of unfinished work, nor what somebody put beside the model."""
    compress_model(tiny_base, tmp_path / "out", "rtn", 3, text, SMALL)
    (tmp_path / "out/adapter").mkdir()
    with pytest.raises(CompressError, match="it holds 'adapter'"):
        compress_model(tiny_base, tmp_path / "out", "rtn", 3, text, SMALL)
    for name in ("one.unfinished", "two.part"):
        thesis = tmp_path / name / "thesis.tex"
        thesis.parent.mkdir()
        thesis.write_text("mine")
        with pytest.raises(CompressError, match=f"{name}' is in the way"):
            compress_model(tiny_base, tmp_path / name.split(".")[0], "rtn", 3, text, SMALL)
        assert thesis.read_text() == "mine"


def test_another_models_blocks_are_not_taken_up(tiny_base: Path, text: Path, tmp_path: Path, monkeypatch):
    """Two models that differ in the middle of their file alone, as before and after a merge."""
    other = shutil.copytree(tiny_base, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight"].neg_()
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with monkeypatch.context() as change, pytest.raises(KeyboardInterrupt):
        change.setattr(model, "save_model", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        compress_model(tiny_base, tmp_path / "out", "rtn", 3, text, SMALL)
    compress_model(other, tmp_path / "out", "rtn", 3, text, SMALL)
    compress_model(other, tmp_path / "clean", "rtn", 3, text, SMALL)
    assert (tmp_path / "out" / FILE).read_bytes() == (tmp_path / "clean" / FILE).read_bytes()


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(tiny_base: Path, text: Path, tmp_path: Path):
    code = "import resource, sys; from compress.__main__ import main; from compress.model import compress_model; "
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(tiny_base), "--method", "rtn", "--bits", "3", "--calibration", str(text)]
    command += ["--sequences", "2", "--length", "16", "--out", str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert run.returncode == 1 and "could not be written" in run.stderr and "Traceback" not in run.stderr
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.part"))


def test_a_plain_model_that_lacks_a_tensor_is_refused(tiny_base: Path, text: Path, tmp_path: Path):
    for name, change in {"lacks": lambda t: t.pop(UP), "of other shapes": lambda t: t.update({UP: t[UP][:-1]})}.items():
        folder = shutil.copytree(tiny_base, tmp_path / name)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CompressError, match=f"{name}.*'{UP}' first"):
            load_model(folder)


def test_a_pickle_is_not_run_and_told_in_a_sentence(tiny_base: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_base, tmp_path / "odd")
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Path("/")}, folder / "pytorch_model.bin")
    with pytest.raises(CompressError, match="no causal language model that loads"):
        load_model(folder)


def test_a_tokenizer_of_another_model_is_told(tiny_base: Path, text: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_base, tmp_path / "small")
    small = AutoModelForCausalLM.from_pretrained(tiny_base)
    small.resize_token_embeddings(30)
    small.save_pretrained(folder)
    with pytest.raises(CompressError, match="the tokenizer gives token"):
        compress_model(folder, tmp_path / "out", "rtn", 3, text, SMALL)


def test_too_little_disk_is_said_before_work(tiny_base: Path, text: Path, tmp_path: Path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(CompressError, match="GiB free"):
        compress_model(tiny_base, tmp_path / "out", "rtn", 4, text, SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tokens", [1, 2])
def test_one_token_of_calibration_is_enough(tokens: int, tiny_base: Path, text: Path, tmp_path: Path):
    options = replace(SMALL, sequences=1, length=tokens)
    report = compress_model(tiny_base, tmp_path / "out", "gptq", 4, text, options)
    assert all(row.error == row.error and row.tokens == tokens for row in report.layers)
    assert logits(tmp_path / "out").isfinite().all()


def test_durations_are_for_people():
    assert [duration(s) for s in (0, 59.6, 75)] == ["0 s", "1 min 0 s", "1 min 15 s"]
