"""Measuring: every token is scored once, with the context that was asked for, against plain definitions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from compress.checkpoint import load_model
from compress.errors import CompressError
from compress.measure import main, measure, measure_model, totals, windows
from compress.text import load_tokenizer

TEXT = "Hello Anna, the review works on Thursday at 10:00. Überraschung: bring number 100 – ok?\n" * 3


@given(st.integers(1, 60), st.integers(2, 12), st.integers(1, 11), st.booleans())
def test_windows_score_every_token_once(count: int, context: int, stride: int, bos: bool):
    ids = list(range(100, 100 + count))
    stride = min(stride, context - 1)
    cut = windows(ids, context, stride, 7 if bos else None)
    assert [i for w in cut for i in w.ids[len(w.ids) - w.scored :]] == ids[0 if bos else 1 :]
    for w in cut:
        assert len(w.ids) <= context and 0 < w.scored < len(w.ids) and (w.ids[0] == 7) == bos
    for w in cut[1:-1]:
        assert len(w.ids) == context and w.scored == stride


def test_perplexity_is_that_of_the_models_own_loss(tiny_base: Path):
    """One window over the whole text: transformers computes the same mean."""
    model, tokenizer = load_model(tiny_base), load_tokenizer(tiny_base)
    ids = tokenizer(TEXT)["input_ids"]
    whole = torch.tensor([[tokenizer.bos_token_id, *ids]])
    with torch.no_grad():
        wanted = model(whole, labels=whole).loss.item()
    found = measure(tiny_base, TEXT, context=len(ids) + 1, device="cpu")
    assert found.perplexity == pytest.approx(math.exp(wanted), rel=1e-4) and found.tokens == len(ids)
    assert found.bits_per_byte == pytest.approx(wanted * len(ids) / math.log(2) / len(TEXT.encode()), rel=1e-4)
    assert found.kl is None and found.bos


def test_batches_and_strides_are_those_of_single_windows(tiny_base: Path):
    """The definition, a window at a time: its last tokens, given all the others in it."""
    model, tokenizer = load_model(tiny_base), load_tokenizer(tiny_base)
    ids, wanted, done = tokenizer(TEXT)["input_ids"], 0.0, 1
    for end in [*range(21, len(ids), 10), len(ids)]:
        window = torch.tensor([ids[max(0, end - 21) : end]])  # all that fits into 21
        with torch.no_grad():
            logits = model(window).logits[0, -(end - done) - 1 : -1]
        wanted += F.cross_entropy(logits, window[0, -(end - done) :], reduction="sum").item()
        done = end
    found, _ = totals(model, None, windows(ids, 21, 10, None), batch=3)
    assert found == pytest.approx(wanted, rel=1e-5)


def test_divergence_is_over_the_whole_vocabulary(tiny_base: Path, tmp_path: Path):
    model, other, tokenizer = load_model(tiny_base), load_model(tiny_base), load_tokenizer(tiny_base)
    same = measure_model(model, tokenizer, TEXT, other, context=64)
    assert same.kl == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        other.model.norm.weight.mul_(0.5)
    found = measure_model(model, tokenizer, TEXT, other, context=1024)
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(TEXT)["input_ids"]]])
    with torch.no_grad():
        mine, true = (m(ids).logits[0, :-1].log_softmax(-1) for m in (model, other))
    assert found.kl == pytest.approx(F.kl_div(mine, true, log_target=True, reduction="batchmean").item(), rel=1e-4)


def test_without_bos_the_first_token_is_neither_scored_nor_counted(tiny_base: Path):
    model, tokenizer = load_model(tiny_base), load_tokenizer(tiny_base)
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    with torch.no_grad():
        wanted = F.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum").item()
    found = measure_model(model, tokenizer, TEXT, bos=False)
    size = len(TEXT.encode()) - len(tokenizer.decode(ids[0, :1]).encode())
    assert found.tokens == ids.shape[1] - 1 and found.bits_per_byte == pytest.approx(
        wanted / math.log(2) / size, rel=1e-4
    )


def test_json_has_the_keys_that_scripts_read(tiny_base: Path, tmp_path: Path, capsys):
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": TEXT}) + "\n" + json.dumps({"text": "More."}) + "\n")
    arguments = [
        str(tiny_base),
        "--text",
        str(tmp_path / "text.jsonl"),
        "--reference",
        str(tiny_base),
        "--context",
        "32",
    ]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() >= {"perplexity", "bits_per_byte", "tokens", "context", "kl"}
    assert found["context"] == 32 and found["kl"] == pytest.approx(0, abs=1e-6)
    assert main(arguments) == 0 and "context 32, stride 31, with BOS" in capsys.readouterr().out


MISTAKES = {
    "context": (["--context", "5000"], "choose 2 to 1024"),
    "stride": (["--context", "32", "--stride", "32"], "choose 1 to 31"),
    "no model": (["--reference", "/no/model"], "'/no/model'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(name: str, tiny_base: Path, tmp_path: Path, capsys):
    (tmp_path / "text.txt").write_text(TEXT)
    more, words = MISTAKES[name]
    assert main([str(tiny_base), "--text", str(tmp_path / "text.txt"), *more]) == 1
    found = capsys.readouterr()
    assert words in found.err.splitlines()[-1] and not found.out


def test_an_empty_text_is_refused(tiny_base: Path):
    with pytest.raises(CompressError, match="0 tokens"):
        measure(tiny_base, "")
