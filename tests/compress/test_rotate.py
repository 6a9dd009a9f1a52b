"""Rotation changes the weights and not the model, for every family; what it cannot pass it refuses by name."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from compress.errors import CompressError
from compress.rotate import Rotation, rotate_

SIZES = {"vocab_size": 61, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4}
SHARED = SIZES | {"num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}
FAMILIES = {
    "llama": {},
    "llama, tied": {"tie_word_embeddings": True},
    "llama, biases": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"head_dim": 16, "sliding_window": 8},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16},
    "phi3": {"hidden_size": 64},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16},
}
POST = ("post_attention_layernorm", "post_feedforward_layernorm")  # behind a layer in Gemma 2 and 3


def made(family: str, uneven: bool = True) -> nn.Module:
    """A tiny random model; uneven: gains and biases as training leaves them, but for norms behind a layer."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family.split(",")[0]](**SHARED | FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config).eval()
    behind = POST if family.startswith("gemma") and family != "gemma" else ()
    for name, parameter in model.named_parameters():
        if uneven and parameter.dim() == 1 and not name.endswith(tuple(f"{p}.weight" for p in behind)):
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def logits(model: nn.Module) -> torch.Tensor:
    ids = torch.randint(0, 61, (3, 17), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(ids).logits


def assert_same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("n", [1, 7, 48, 64, 137])
def test_a_rotation_is_orthogonal_and_mixes_all_channels(n: int):
    turn = Rotation(n, torch.Generator().manual_seed(0))
    Q = turn.rows(torch.eye(n))
    assert torch.allclose(Q @ Q.T, torch.eye(n), atol=1e-5)
    assert torch.allclose(turn.columns(torch.eye(n)), Q.T, atol=1e-6)
    assert Q.abs().max() <= (2 / n) ** 0.5 + 1e-6, "every channel goes to all"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("parts", [{}, {"heads": False}, {"residual": False}])
def test_logits_stay_and_weights_do_not(family: str, parts: dict[str, bool]):
    model = made(family)
    before, weights = logits(model), copy.deepcopy(model.state_dict())
    report = rotate_(model, seed=3, **parts)
    assert_same(logits(model), before)
    assert report.change <= 1e-4
    moved = {n for n, w in model.state_dict().items() if n in weights and not torch.allclose(w, weights[n], atol=1e-3)}
    leaves = {n.split(".")[-2] for n in moved}
    assert ("down_proj" in leaves and "embed_tokens" in leaves) == parts.get("residual", True)
    assert leaves & {"v_proj", "qkv_proj"} and "o_proj" in leaves
