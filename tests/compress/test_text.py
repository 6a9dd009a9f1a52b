"""Calibration text: sequences that do not overlap, from texts in an order that the seed draws."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from compress.checkpoint import load_model
from compress.errors import CompressError
from compress.text import load_tokenizer, own_samples, read_text, token_sequences


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "mails.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"Mail {n} says: bring number {n}."}) for n in range(40)) + "\n\n")
    return path


def test_sequences_are_the_texts_one_after_the_other(tiny_base: Path, lines: Path):
    tokenizer = load_tokenizer(tiny_base)
    ids = token_sequences(lines, tokenizer, 6, 32, seed=1)
    assert ids.shape == (6, 32) and (ids[:, 0] == tokenizer.bos_token_id).all()
    texts = tokenizer.decode(ids[:, 1:].flatten()).split(tokenizer.bos_token)
    known = [json.loads(line)["text"] for line in lines.read_text().split("\n") if line]
    assert all(t in known for t in texts[:-1]) and len(set(texts)) == len(texts), "whole texts, none twice"
    assert texts[:-1] != known[: len(texts) - 1], "in drawn order"


def test_the_seed_draws(tiny_base: Path, lines: Path):
    tokenizer = load_tokenizer(tiny_base)
    a, b, c = (token_sequences(lines, tokenizer, 4, 16, seed) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_one_token_is_one_of_the_text(tiny_base: Path, lines: Path):
    assert token_sequences(lines, load_tokenizer(tiny_base), 1, 1, 0).shape == (1, 1)


def test_own_samples_are_drawn_from_the_model(tiny_base: Path):
    model = load_model(tiny_base)
    a, b, c = (own_samples(model, 3, 24, seed, batch=2) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert a.shape == (3, 24) and (a[:, 0] == 0).all() and a.max() < (size := model.config.vocab_size)
    with torch.no_grad():
        scored = model(a).logits[:, :-1].log_softmax(-1).gather(2, a[:, 1:, None]).mean()
    assert scored > -math.log(size), "likelier to it than chance"


BAD = {
    "no JSON": ("{", "line 1 of"),
    "no text": ('{"text": "a"}\n{"body": "b"}', "line 2 of"),
    "a list": ("[1]", "line 1 of"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named_but_not_shown(name: str, tmp_path: Path):
    content, words = BAD[name]
    (tmp_path / "t.jsonl").write_text(content)
    with pytest.raises(CompressError, match=words) as error:
        read_text(tmp_path / "t.jsonl")
    assert "body" not in str(error.value)
