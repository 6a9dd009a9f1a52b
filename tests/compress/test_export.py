"""python -m compress.export: what python -m compress wrote, as other libraries load it; what they cannot say is one sentence."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from compress.__main__ import main as compress
from compress.checkpoint import load_model
from compress.export import main
from compress.formats import FORMATS, PLAIN
from compress.linear import QuantizedLinear

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 96, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with an untied head whose sizes divide by 32."""
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1)
    folder = tmp_path_factory.mktemp("source")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def made(source: Path, out: Path, method: str, bits: str, *settings: str) -> Path:
    """What the command writes."""
    arguments = [str(source), "--method", method, "--bits", bits, "--out", str(out), "--sequences", "4"]
    assert compress([*arguments, "--length", "16", "--set", *settings]) == 0
    return out


MADE = {
    "plain": ("trellis", "2"),
    "aqlm": ("aqlm", "2", "shape=2x8g8", "rounds=0", "passes=1"),
    "aqlm, int8": ("aqlm", "2", "shape=2x4g8", "rounds=0", "passes=0", "int8=true"),
    "gptq": ("gptq", "4", "group=32", "symmetric=true"),
    "gptq_v2": ("gptq", "3", "group=32"),
    "compressed-tensors": ("rtn", "3", "group=32"),
    "spqr": ("spqr", "4"),
}


@pytest.mark.parametrize("case", MADE)
def test_what_one_command_writes_the_other_hands_on(case: str, source: Path, tmp_path: Path, capsys):
    name = case.partition(",")[0]
    small = made(source, tmp_path / "small", *MADE[case])
    capsys.readouterr()
    assert main([str(small), "--format", name, "--out", str(tmp_path / "out"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    kept = 0 if name == "plain" else 14
    assert said["format"] == name and said["layers"] == kept and said["out"] == str(tmp_path / "out")
    assert said["bytes"] == sum(f.stat().st_size for f in (tmp_path / "out").iterdir())
    ours, theirs = load_model(small), load_model(tmp_path / "out")
    assert sum(isinstance(m, QuantizedLinear) for m in theirs.modules()) == kept
    ids = torch.randint(0, 96, (2, 9))
    with torch.no_grad():
        found, wanted = theirs(ids).logits, ours(ids).logits
    assert (found - wanted).norm() < 0.01 * wanted.norm(), "but for the fp16 of what is not compressed"


def test_the_module_runs_as_a_command(source: Path, tmp_path: Path, monkeypatch, capsys):
    small = made(source, tmp_path / "small", "rtn", "4", "group=32")
    monkeypatch.setattr(sys, "argv", ["export", str(small), "--format", "plain", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("compress.export", run_name="__main__")
    assert left.value.code == 0 and "0 layers" in capsys.readouterr().out


def test_what_cannot_be_said_is_one_sentence_and_leaves_nothing(source: Path, tmp_path: Path, capsys):
    small = made(source, tmp_path / "small", "rtn", "3", "group=32")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    out = str(tmp_path / "out")
    wrong = {
        "its codes are grid": [str(small), "--format", "aqlm", "--out", out],
        "its scales are of another kind": [str(small), "--format", "spqr", "--out", out],
        "choose one of plain, aqlm": [str(small), "--format", "onnx", "--out", out],
        "is not compressed": [str(source), "--format", "plain", "--out", out],
        "no model directory": [str(tmp_path / "nowhere"), "--format", "plain", "--out", out],
        "name a new directory": [str(small), "--format", "plain", "--out", str(tmp_path / "mine")],
    }
    for sentence, arguments in wrong.items():
        capsys.readouterr()
        assert main(arguments) == 1
        said = capsys.readouterr()
        assert sentence in said.err.splitlines()[-1] and said.err.count("error: ") == 1 and not said.out
    assert {p.name for p in tmp_path.iterdir()} == {"small", "mine"} and (tmp_path / "mine" / "thesis.tex").exists()


def test_every_format_is_tried():
    assert {case.partition(",")[0] for case in MADE} == {PLAIN, *FORMATS}
