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


def refused(model: nn.Module, match: str, **parts: bool) -> None:
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CompressError, match=match):
        rotate_(model, **parts)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items()), "a refused model stays as it was"


def test_tied_ends_stay_tied_if_the_final_gains_are_equal():
    model = made("qwen2", uneven=False)
    before = logits(model)
    assert rotate_(model).tied and model.lm_head.weight is model.model.embed_tokens.weight
    assert_same(logits(model), before)


def test_tied_ends_part_if_they_are_not_and_that_may_be_forbidden():
    model = made("qwen2")
    refused(model, "tied: 'model.norm'", untie=False)
    before = logits(model)
    assert not rotate_(model).tied and not model.config.tie_word_embeddings
    model.tie_weights()  # as transformers does on loading and saving
    assert_same(logits(model), before)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_uneven_norms_behind_a_layer_are_named_and_heads_alone_still_turn(family: str):
    model = made(family)
    for layer in model.model.layers:
        layer.post_feedforward_layernorm.weight.data += 0.3 * torch.randn(48)
    refused(model, "'model.layers.0.post_feedforward_layernorm'.*heads only")
    before = logits(model)
    rotate_(model, residual=False)
    assert_same(logits(model), before)


@pytest.mark.parametrize(
    ("family", "options", "match"),
    [
        ("phi", {}, "'model.layers.0.input_layernorm' .LayerNorm.: it is no RMSNorm"),
        ("olmo2", {}, "'model.layers.0': no linear layer in it reads"),
        ("starcoder2", {}, "it is no RMSNorm"),
    ],
)
def test_other_architectures_are_refused_by_the_layer(family: str, options: dict, match: str):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**SHARED | options)).eval()
    refused(model, match)


def test_heads_turn_whatever_the_norms_are():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["starcoder2"](**SHARED)).eval()
    before = logits(model)
    rotate_(model, residual=False)
    assert_same(logits(model), before)


class Gated(nn.Module):
    """A norm's output used elsewhere than in a linear layer: what no fold can follow."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.mix = block, nn.Parameter(torch.randn(48))

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        out = self.block(hidden_states, **kwargs)
        return out + 0.1 * torch.tanh(out * self.mix)


def test_a_block_that_does_more_than_norms_and_linears_is_named():
    model = made("llama")
    model.model.layers[1] = Gated(model.model.layers[1])
    refused(model, "'model.layers.1'")


def test_rotation_spreads_outliers():
    model = made("llama", uneven=False)
    model.model.embed_tokens.weight.data[:, 5] *= 50
    for layer in model.model.layers:
        layer.mlp.up_proj.weight.data[:, 5] *= 50

    def peak(w: torch.Tensor) -> float:
        return (w.abs().amax(1) / w.square().mean(1).sqrt()).mean().item()

    before = peak(model.model.layers[0].mlp.up_proj.weight)
    rotate_(model)
    assert peak(model.model.layers[0].mlp.up_proj.weight) < 0.7 * before


def test_the_same_seed_gives_the_same_weights():
    first, second, other = (made("llama") for _ in range(3))
    for model, seed in ((first, 1), (second, 1), (other, 2)):
        rotate_(model, seed=seed)
    assert torch.equal(first.lm_head.weight, second.lm_head.weight)
    assert not torch.allclose(first.lm_head.weight, other.lm_head.weight, atol=1e-3)


def test_nothing_to_rotate_is_a_mistake():
    refused(made("llama"), "residual, heads or both", residual=False, heads=False)
