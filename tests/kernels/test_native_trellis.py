"""Trellis products and the transforms around them, beyond `test_native_linear`: tables, scales, odd inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compress import native
from compress.decode import Grid, Trellis
from compress.luts import default_lut
from compress.tables import Real
from compress.transform import Transform
from compress.weight import QuantizedWeight
from tests.conftest import needs_kernels

pytestmark = needs_kernels
ISAS = native._kernels.isas() if native.available() else []


def trellis(N: int, D: int, lut: Tensor, step: int, chance: torch.Generator, groups: int = 1) -> QuantizedWeight:
    """Random codes with a table; `groups` scales a row."""
    made = QuantizedWeight((N, D), Trellis(N, D, step, lut.numel().bit_length() - 1), Real(N, groups))
    made.decode.codes.copy_(torch.randint(0, 256, made.decode.codes.shape, generator=chance))
    made.decode.lut.data.copy_(lut)
    for t in made.scale.parameters():
        t.data.copy_(0.5 + torch.rand(t.shape, generator=chance))
    return made


def error(weight: QuantizedWeight, x: Tensor, isa: str) -> float:
    """The largest relative error of a token's product."""
    exact = x.double() @ weight.dense().detach().double().T
    y = torch.from_numpy(native.linear(weight, isa=isa).multiply(x.numpy(), native.pool(2)))
    return ((y - exact).norm(dim=1) / exact.norm(dim=1)).max().item()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("window", [6, 7, 8])
@pytest.mark.parametrize("step", [2, 3, 4])
def test_the_learned_tables_multiply(step: int, window: int, isa: str, chance: torch.Generator):
    weight = trellis(272, 1424, default_lut(window, step), step, chance)
    for tokens in (1, 2, 3, 4):
        assert error(weight, torch.randn(tokens, 1424, generator=chance), isa) < 5e-4


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("window", [6, 7, 8])
@pytest.mark.parametrize("step", [2, 3, 4])
def test_tables_of_whole_steps_multiply(step: int, window: int, isa: str, chance: torch.Generator):
    whole = (default_lut(window, step) * 40).round().clamp(-127, 127)
    for lut in (whole / 32, whole * 0.0271 + 0.33, whole.sign()):
        weight = trellis(144, 720, lut, step, chance)
        for tokens in (1, 2, 3, 4):
            assert error(weight, torch.randn(tokens, 720, generator=chance), isa) < 1e-3


@pytest.mark.parametrize("isa", ISAS)
def test_a_constant_table_sums_the_inputs(isa: str, chance: torch.Generator):
    weight = trellis(32, 720, torch.full((128,), 0.7), 2, chance)
    assert error(weight, 1 + torch.randn(2, 720, generator=chance), isa) < 1e-3
    zeros = trellis(32, 720, torch.zeros(128), 2, chance)
    assert not native.linear(zeros, isa=isa).multiply(torch.ones(2, 720).numpy(), native.pool(1)).any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("groups", [1, 2, 4, 8, 40, 80])
def test_every_group_has_its_scale(groups: int, isa: str, chance: torch.Generator):
    weight = trellis(160, 1280, default_lut(7, 2), 2, chance, groups)
    for tokens in (1, 4):
        assert error(weight, torch.randn(tokens, 1280, generator=chance), isa) < 1e-3


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("window", "step", "groups"),
    [(5, 2, 1), (9, 2, 1), (12, 3, 2), (16, 4, 1), (16, 16, 1), (4, 1, 1), (7, 5, 1), (8, 8, 1), (7, 2, 24)],
)
def test_other_windows_and_groups_multiply_too(window: int, step: int, groups: int, isa: str, chance: torch.Generator):
    weight = trellis(48, 48, torch.randn(1 << window, generator=chance), step, chance, groups)
    for tokens in (1, 2, 3, 4):
        assert error(weight, torch.randn(tokens, 48, generator=chance), isa) < 1e-3


@pytest.mark.parametrize("isa", ISAS)
def test_large_inputs_among_small_ones_cost_little(isa: str, chance: torch.Generator):
    weight = trellis(256, 4096, default_lut(8, 2), 2, chance)
    x = torch.randn(4, 4096, generator=chance)
    x *= 1 + 19 * (torch.rand(x.shape, generator=chance) < 0.005)
    assert error(weight, x, isa) < 1.5e-3
    assert error(weight, x * 1e-20, isa) < 1.5e-3
    assert error(weight, x * 1e20, isa) < 1.5e-3


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_stays_none(bad: float, isa: str, chance: torch.Generator):
    made = native.linear(trellis(32, 1040, default_lut(8, 2), 2, chance), isa=isa)
    x = torch.randn(3, 1040, generator=chance)
    x[1, 777] = bad
    y = torch.from_numpy(made.multiply(x.numpy(), native.pool(1)))
    assert not y[1].isfinite().any() and y[0].isfinite().all() and y[2].isfinite().all()
    made = native.linear(trellis(32, 1040, torch.full((128,), bad), 2, chance), isa=isa)
    assert not torch.from_numpy(made.multiply(x.numpy(), native.pool(1))).isfinite().any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("block", [2**k for k in range(1, 11)])
def test_a_transform_is_that_of_the_definition(block: int, isa: str, chance: torch.Generator):
    n = 3 * block
    for N, D, blocks in ((5, n, (block, 1)), (n, 5, (1, block))):
        transform = Transform.random(N, D, *blocks, 7)
        weight = QuantizedWeight((N - 1, D - 1), Grid(N, D, 8), Real(N, 1), transform)
        weight.decode.codes.copy_(torch.randint(0, 256, weight.decode.codes.shape, generator=chance))
        for t in weight.scale.parameters():
            t.data.copy_(0.5 + torch.rand(t.shape, generator=chance))
        assert error(weight, torch.randn(2, D - 1, generator=chance), isa) < 1e-3
