"""The representation: codes pack and unpack, transforms are orthogonal, each kind decodes as its formula says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compress import ops
from compress.decode import Additive, Grid, Lut, Trellis, from_chains, to_chains
from compress.linear import QuantizedEmbedding, QuantizedLinear
from compress.tables import Real, TwoLevel, Whole
from compress.transform import Transform
from compress.weight import LowRank, QuantizedWeight, Sparse


@given(st.integers(1, 16), st.integers(1, 67), st.integers(0, 2**31))
def test_packed_codes_come_back_and_take_their_bits(bits: int, count: int, seed: int):
    codes = torch.randint(0, 2**bits, (3, count), generator=torch.Generator().manual_seed(seed))
    packed = ops.pack(codes, bits)
    assert packed.shape == (3, (count * bits + 7) // 8) and packed.dtype == torch.uint8
    assert torch.equal(ops.unpack(packed, count, bits), codes.int())


def test_windows_slide_over_the_bits_low_bit_first():
    packed = torch.tensor([0b10110100, 0b00000001], dtype=torch.uint8)
    bits = [0, 0, 1, 0, 1, 1, 0, 1, 1]
    expected = [sum(b << i for i, b in enumerate(bits[2 * t : 2 * t + 3])) for t in range(4)]
    assert ops.windows(packed, 4, 2, 3).tolist() == expected


@pytest.mark.parametrize("block", [1, 2, 64, 128, 256, 1024])
def test_hadamard_is_its_own_inverse_and_keeps_lengths(block: int):
    x = torch.randn(3, 2 * block)
    y = ops.hadamard(x, block)
    assert torch.allclose(ops.hadamard(y, block), x, atol=1e-5) and torch.allclose(y.norm(), x.norm(), rtol=1e-5)
    if 1 < block <= 256:  # block (a, b): sign (-1)^popcount(a & b)
        matrix = torch.tensor([[(-1) ** bin(a & b).count("1") for b in range(block)] for a in range(block)])
        assert torch.allclose(y[:, :block], x[:, :block] @ matrix.float() / block**0.5, atol=1e-4)


@pytest.mark.parametrize(("n", "d", "N", "D"), [(5, 7, 8, 8), (48, 137, 48, 144), (16, 16, 16, 16)])
def test_a_transformed_weight_gives_the_same_outputs(n: int, d: int, N: int, D: int):
    made = Transform.random(N, D, ops.power_of_two_in(D), ops.power_of_two_in(N), seed=1)
    made.order = torch.randperm(D).int()
    w, x = torch.randn(n, d), torch.randn(4, d)
    coded = made.weight(w)
    assert torch.allclose(made.back(coded)[:n, :d], w, atol=1e-5)
    assert torch.allclose(made.outputs(made.inputs(x) @ coded.T)[:, :n], x @ w.T, atol=1e-4)
    assert torch.allclose(made.hessian(x.T @ x), made.inputs(x).T @ made.inputs(x), atol=1e-4)


def test_chains_run_over_tiles_of_sixteen_in_quads():
    w = torch.arange(32 * 48).float().view(32, 48)
    chains = to_chains(w)
    assert torch.equal(from_chains(chains, 48), w)
    assert chains[0, :8].tolist() == [0, 1, 2, 3, 48, 49, 50, 51], "four inputs of an output, then the next output"
    assert chains[0, 64:68].tolist() == [4, 5, 6, 7], "then the next quad"
    assert chains[0, 256].item() == 16 and chains[1, 0].item() == 16 * 48


def random_(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Fresh codes and tables."""
    chance = torch.Generator().manual_seed(seed)
    for name, t in module.state_dict().items():
        if t.dtype == torch.uint8:
            t.copy_(torch.randint(0, 256, t.shape, generator=chance, dtype=torch.uint8))
        elif t.is_floating_point() and "sparse" not in name:
            t.copy_(torch.randn(t.shape, generator=chance))
    return module


def weights() -> dict[str, QuantizedWeight]:
    """One weight of each kind, odd where the kind allows it."""
    outliers = Sparse.of(torch.randn(5, 7) * (torch.rand(5, 7) < 0.3))
    return {
        "symmetric grid": QuantizedWeight((5, 7), Grid(5, 7, 3), Real(5, 1)),
        "gptq": QuantizedWeight((5, 7), Grid(5, 8, 4, Whole(5, 2, 4)), Real(5, 2), Transform(5, 8, permuted=True)),
        "spqr": QuantizedWeight((5, 7), Grid(5, 8, 3, TwoLevel(5, 2, 3, 2)), TwoLevel(5, 2, 3, 2), sparse=outliers),
        "lut": QuantizedWeight((5, 7), Lut(5, 7, 2, rows=5), low_rank=LowRank(5, 7, 2)),
        "aqlm": QuantizedWeight((5, 7), Additive(5, 8, books=2, bits=8, group=4), Real(5, 1)),
        "trellis": QuantizedWeight((30, 70), Trellis(32, 80, 2, 8), Real(32, 1), Transform.random(32, 80, 16, 32, 0)),
    }


@pytest.mark.parametrize("name", weights())
def test_a_weight_survives_its_spec_and_state(name: str):
    weight = random_(weights()[name])
    again = QuantizedWeight.from_spec(weight.spec())
    again.load_state_dict(weight.state_dict())
    assert torch.equal(again.dense(), weight.dense()) and weight.dense().shape == weight.shape
    assert weight.dense().abs().sum() > 0


@pytest.mark.parametrize("name", weights())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_layer_multiplies_and_passes_gradients(name: str, dtype: torch.dtype):
    weight = random_(weights()[name])
    bias = torch.randn(weight.shape[0])
    layer, x = QuantizedLinear(weight, bias), torch.randn(2, 3, weight.shape[1], dtype=dtype, requires_grad=True)
    y = layer(x)
    exact = x.double() @ weight.dense().double().T + bias.double()
    assert y.dtype == dtype and (y - exact).norm() <= 4 * torch.finfo(dtype).eps * exact.norm()
    y.float().square().sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0
    for key, parameter in weight.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


def test_gradients_of_the_tables_are_those_of_finite_differences():
    weight = random_(weights()["trellis"]).double()
    direction = torch.randn(weight.shape, dtype=torch.float64)
    (weight.dense() * direction).sum().backward()
    for key, p in weight.named_parameters():
        step = torch.randn(p.shape, dtype=torch.float64)
        before = p.data.clone()
        p.data = before + step
        up = (weight.dense().double() * direction).sum()
        p.data = before - step
        down = (weight.dense().double() * direction).sum()
        p.data = before
        assert torch.allclose((up - down) / 2, (p.grad * step).sum(), rtol=2e-2), key  # dense() is linear in each


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_trellis_reads_its_window_from_the_stream(bits: int):
    made = random_(Trellis(16, 16, bits, 8))
    stream = [int(b) >> i & 1 for b in made.codes[0] for i in range(8)]
    states = [sum(b << i for i, b in enumerate(stream[t * bits : t * bits + 8])) for t in range(256)]
    assert made.states()[0].tolist() == states
    assert made().flatten()[1].item() == made.lut[states[1]].item()


def test_an_embedding_gathers_and_layers_can_hold_their_weight():
    weight = random_(weights()["gptq"])
    table, layer = QuantizedEmbedding(weight), QuantizedLinear(weight)
    assert torch.equal(table(torch.tensor([[3, 0]])), weight.dense()[[3, 0]][None])
    layer.hold(torch.float32)
    before = layer(torch.ones(1, 7))
    weight.scale.values.data *= 2
    assert torch.equal(layer(torch.ones(1, 7)), before)
    layer.hold(None)
    assert torch.allclose(layer(torch.ones(1, 7)), 2 * before, rtol=1e-3)
