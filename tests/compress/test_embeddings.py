"""Embedding and head as grids: close at 8 bits, closer with more bits, tied ends one set of codes, any family."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from compress.checkpoint import load_model, save_model
from compress.embeddings import EmbeddingConfig, compress_embeddings_, token_counts
from compress.errors import CompressError
from compress.rows8 import load_rows8

BASE = Path(__file__).parents[2] / "data" / "base"
SIZES = {
    "vocab_size": 200,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
SHARED = SIZES | {"num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "pad_token_id": 0}


def made(family: str, tied: bool) -> nn.Module:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**SHARED, tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.get_input_embeddings().weight.data[0] = 0  # a row of zeros, as padding has
    return model


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(200).view(5, 40)).logits


def change(model: nn.Module, before: torch.Tensor) -> float:
    return ((logits(model) - before).norm() / before.norm()).item()


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("tied", [True, False])
def test_eight_bits_change_little_and_fewer_bits_more(family: str, tied: bool):
    model, changes = made(family, tied), []
    before = logits(model)
    for bits in (8, 6, 5, 4):
        twin = copy.deepcopy(model)
        compress_embeddings_(twin, EmbeddingConfig(bits, bits))
        changes.append(change(twin, before))
        head, rows = twin.get_output_embeddings().quantized, twin.get_input_embeddings().quantized
        assert (rows.decode is head.decode) == tied
    assert changes[0] < 0.01 and changes == sorted(changes) and changes[-1] < 0.2


def test_tied_ends_are_one_in_the_file_and_come_back(tmp_path: Path):
    model = made("gemma3_text", tied=True)
    compress_embeddings_(model, EmbeddingConfig(4, 4))
    (tmp_path / "source").mkdir()
    save_model(model, tmp_path / "source", tmp_path / "out")
    again = load_model(tmp_path / "out")
    assert torch.allclose(logits(again), logits(model), atol=1e-3), "the rest lies in fp16"
    assert again.lm_head.quantized.decode.codes is again.model.embed_tokens.quantized.decode.codes


def test_ends_may_have_bits_of_their_own_or_stay():
    model = made("llama", tied=False)
    names = compress_embeddings_(model, EmbeddingConfig(embedding=4, head=6))
    assert {name: weight.decode.bits for name, weight in names.items()} == {"model.embed_tokens": 4, "lm_head": 6}
    assert not compress_embeddings_(made("llama", tied=True), EmbeddingConfig(embedding=4, head=0)), (
        "tied: 16 is the larger"
    )
    (only,) = compress_embeddings_(made("llama", tied=False), EmbeddingConfig(embedding=0, head=5))
    assert only == "lm_head"
    (weight,) = set(compress_embeddings_(made("llama", tied=True), EmbeddingConfig(4, 6)).values())
    assert weight.decode.bits == 6


def test_frequent_tokens_are_kept_better_when_counts_are_given():
    model = made("llama", tied=True)
    counts = token_counts(torch.full((1000,), 7), 200)
    assert counts[7] == 1001 and counts[8] == 1
    weight = model.lm_head.weight.detach().clone()
    made_ = compress_embeddings_(model, EmbeddingConfig(4, 4, exact=0.01), counts)["lm_head"]
    rows = (made_.dense() - weight).square().sum(1).detach()
    assert rows[7] < 0.01 * rows[1:].mean(), "its costliest errors are gone"
    assert len(made_.sparse.values) <= 0.011 * weight.numel()


@pytest.mark.parametrize("options", [{"embedding": 3}, {"head": 9}, {"group": -1}, {"exact": 1.0}])
def test_other_settings_are_refused(options: dict):
    with pytest.raises(CompressError, match=str(next(iter(options.values())))):
        EmbeddingConfig(**options)


def test_compressed_ends_are_not_compressed_again():
    model = LlamaForCausalLM(LlamaConfig(**SHARED))
    compress_embeddings_(model)
    with pytest.raises(CompressError, match="already"):
        compress_embeddings_(model)


def test_the_embedded_model_keeps_its_predictions_at_eight_and_six_bits():
    model, found = load_rows8(BASE), []
    ids = torch.randint(0, model.config.vocab_size, (1, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(ids).logits.log_softmax(-1)
        for bits in (8, 6):
            twin = copy.deepcopy(model)
            compress_embeddings_(twin, EmbeddingConfig(bits, bits))
            after = twin(ids).logits.log_softmax(-1)
            found.append((before.exp() * (before - after)).sum(-1).mean().item())
    assert found[0] < 1e-3 and found[1] < 2e-2, "KL in nats a token"
