"""Calibration: what blocks are called with, what layers read, and how much each token matters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, MixtralConfig, Phi3Config, Qwen3Config

from compress.blocks import find_blocks, left_out, plain_linears
from compress.calibrate import Statistics, advance_, capture, statistics
from compress.errors import CompressError
from compress.guide import guides

CPU = torch.device("cpu")
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 64,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = {
    "llama": LlamaConfig(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "phi3": Phi3Config(**SIZES, tie_word_embeddings=False),
    "gemma3": Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=4, layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4),
}  # fmt: skip


def made(family: str) -> nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(FAMILIES[family]).eval()


def some_ids(sequences: int = 5, length: int = 12) -> torch.Tensor:
    return torch.randint(0, 64, (sequences, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_running_block_by_block_is_running_the_model(family: str):
    model, ids = made(family), some_ids()
    _, blocks = find_blocks(model)
    with torch.no_grad():
        wanted = model(ids, use_cache=False, output_hidden_states=True).hidden_states
    stream = capture(model, blocks, ids, batch=2)
    assert len(blocks) == 3 and torch.equal(stream.hidden, wanted[0])
    for index in range(2):
        advance_(stream, index, blocks[index], CPU)
        torch.testing.assert_close(stream.hidden, wanted[index + 1])


def test_a_stream_in_a_file_is_one_in_memory(tmp_path: Path):
    model, ids = made("llama"), some_ids()
    _, blocks = find_blocks(model)
    here, there = capture(model, blocks, ids, 2), capture(model, blocks, ids, 2, tmp_path / "hidden")
    for stream in (here, there):
        advance_(stream, 0, blocks[0], CPU)
    assert torch.equal(here.hidden, there.hidden) and (tmp_path / "hidden").stat().st_size == 4 * 5 * 12 * 32


GROUPS = {
    "llama": [3, 1, 2, 1],
    "qwen3": [3, 1, 2, 1],
    "phi3": [1, 1, 1, 1],
    "gemma3": [3, 1, 2, 1],
    "mixtral": [3, 1],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_that_read_the_same_input_share_a_hessian(family: str):
    model, ids = made(family), some_ids()
    _, blocks = find_blocks(model)
    stream = capture(model, blocks, ids, batch=2)
    seen = statistics(blocks[0], plain_linears(blocks[0]), stream, 0, CPU)
    hessians = seen.hessians()
    assert [len(names) for names in seen.groups()] == GROUPS[family]
    for names in seen.groups():
        assert all(hessians[name] is hessians[names[0]] for name in names)
    first = seen.groups()[0][0]
    x = blocks[0].input_layernorm(stream.hidden).flatten(0, 1).detach()
    torch.testing.assert_close(hessians[first][0], x.T @ x / len(x), rtol=1e-4, atol=1e-5)


def test_what_is_no_linear_layer_is_reported():
    _, blocks = find_blocks(made("mixtral"))
    assert set(left_out(blocks[0])) == {"mlp.gate.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"}
    assert left_out(find_blocks(made("llama"))[1][0]) == {}


class Routed(nn.Module):
    """Two experts; the second is asked for tokens whose first number is positive."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        which = (x[:, 0] > 0).long()
        for number, expert in enumerate(self.experts[:2]):
            if (which == number).any():
                x[which == number] = expert(x[which == number])
        return x


def test_an_expert_that_no_token_reached_has_the_identity():
    block = Routed()
    x = torch.randn(50, 4)
    with torch.no_grad(), Statistics(plain_linears(block)).collecting() as seen:
        seen.begin(slice(0, 50))
        chosen = x[x[:, 0] <= 0].clone()
        block(x.clone())
    hessians = seen.hessians()
    assert torch.equal(hessians["experts.2"], torch.eye(4)[None]) and seen.tokens["experts.2"] == 0
    assert seen.tokens["experts.0"] == len(chosen) and seen.tokens["experts.0"] + seen.tokens["experts.1"] >= 50
    torch.testing.assert_close(hessians["experts.0"][0], chosen.T @ chosen / len(chosen))


def test_one_tensor_changed_in_place_is_two_inputs():
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    x = torch.randn(6, 4)
    with torch.no_grad(), Statistics({"a": a, "b": b}).collecting() as seen:
        seen.begin(slice(0, 6))
        a(x), b(x.mul_(2))
    hessians = seen.hessians()
    assert seen.groups() == [["a"], ["b"]]
    torch.testing.assert_close(hessians["b"], 4 * hessians["a"])


def test_inputs_that_are_not_finite_name_the_layer():
    layer, x = nn.Linear(4, 4), torch.full((2, 4), float("inf"))
    with torch.no_grad(), Statistics({"proj": layer}).collecting() as seen:
        layer(x)
    with pytest.raises(CompressError, match="'proj'"):
        seen.hessians()


def test_guides_are_the_squared_gradients():
    """Against autograd on one sequence: moving an output of a layer moves the loss by the gradient."""
    model, ids = made("llama"), some_ids(3)
    _, blocks = find_blocks(model)
    guide = guides(model, blocks, ids, groups=2, batch=2)[1]["mlp.up_proj"]
    assert guide.shape == (36, 2) and guide.float().mean().item() == pytest.approx(1, rel=0.02)
    shift = torch.zeros(3, 12, 48, requires_grad=True)
    hook = blocks[1].mlp.up_proj.register_forward_hook(lambda module, args, out: out + shift)
    logits = model(ids, use_cache=False).logits[:, :-1]
    nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").backward()
    hook.remove()
    wanted = shift.grad.square().flatten(0, 1).unflatten(1, (2, 24)).mean(2)
    torch.testing.assert_close(guide.float(), wanted / wanted.mean(), rtol=0.02, atol=1e-4)


def test_a_guide_weights_tokens_and_has_a_hessian_for_each_group():
    layer, x, weight = nn.Linear(4, 6), torch.randn(10, 4), torch.rand(10, 2).bfloat16()
    with torch.no_grad(), Statistics({"proj": layer}, {"proj": weight}).collecting() as seen:
        for rows in (slice(0, 7), slice(7, 10)):
            seen.begin(rows)
            layer(x[rows])
    wanted = torch.einsum("tq,ti,tj->qij", weight.float(), x, x) / 10
    torch.testing.assert_close(seen.hessians()["proj"], wanted)


def test_a_block_without_linear_layers_is_refused():
    with pytest.raises(CompressError, match="no list of blocks"):
        find_blocks(nn.Sequential(nn.Linear(2, 2)))
