"""The small network against Hugging Face's, and the 8-bit rows against the fp32 weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress.errors import CompressError
from compress.rows8 import FILE, dequantize_rows, load_rows8, quantize_rows, save_rows8
from pretrain.model import Llama, Shape, document_mask, from_hugging_face, to_hugging_face

TINY = Shape(vocab=97, hidden=32, layers=2, heads=4, kv_heads=2, ffn=56, context=64)


@pytest.fixture
def model() -> Llama:
    return Llama(TINY).init_(torch.Generator().manual_seed(1))


def test_same_logits_as_hugging_face(model: Llama):
    tokens = torch.randint(0, 97, (2, 37), generator=torch.Generator().manual_seed(2))
    ours = model.hidden(tokens) @ model.embed_tokens.weight.T
    theirs = to_hugging_face(model, 0, 1)(tokens).logits
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_round_trip_through_hugging_face(model: Llama):
    back = from_hugging_face(to_hugging_face(model, 0, 1))
    assert back.shape == model.shape
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), back.parameters(), strict=True))


def test_no_document_sees_another(model: Llama):
    tokens = torch.randint(0, 97, (1, 20), generator=torch.Generator().manual_seed(3))
    docs = torch.tensor([[0] * 8 + [1] * 12])
    packed = model.hidden(tokens, document_mask(docs, flex=False))
    changed = tokens.clone()
    changed[0, :8] = 5
    other = model.hidden(changed, document_mask(docs, flex=False))
    assert torch.equal(packed[0, 8:], other[0, 8:])
    assert not torch.allclose(packed[0, :8], other[0, :8])


def test_a_later_token_changes_nothing_before_it(model: Llama):
    tokens = torch.randint(0, 96, (1, 20), generator=torch.Generator().manual_seed(4))
    changed = tokens.clone()
    changed[0, 15] += 1
    assert torch.allclose(model.hidden(tokens)[0, :15], model.hidden(changed)[0, :15], atol=1e-6)


def test_rows_are_rounded_to_half_a_step():
    w = torch.randn(7, 137, generator=torch.Generator().manual_seed(5))
    w[3] = 0
    codes, scale = quantize_rows(w)
    error = (dequantize_rows(codes, scale) - w).abs()
    assert codes.dtype == torch.int8 and scale.dtype == torch.float16
    assert (error <= 0.51 * scale.float()[:, None] + 1e-3 * w.abs()).all()
    assert (dequantize_rows(codes, scale)[3] == 0).all()


def test_saved_rows_load_as_a_model_that_writes(model: Llama, tmp_path: Path):
    twin = to_hugging_face(model, 0, 1)
    save_rows8(twin, tmp_path)
    loaded = load_rows8(tmp_path)
    tokens = torch.randint(0, 97, (2, 37), generator=torch.Generator().manual_seed(6))
    a, b = twin(tokens).logits, loaded(tokens).logits
    assert (a - b).norm() < 0.02 * a.norm()
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert loaded.generation_config.eos_token_id == 1
    assert loaded.generate(tokens[:1], max_new_tokens=5, eos_token_id=None).shape == (1, 42)


def test_a_folder_without_rows_is_named(tmp_path: Path):
    with pytest.raises(CompressError, match=FILE):
        load_rows8(tmp_path)
