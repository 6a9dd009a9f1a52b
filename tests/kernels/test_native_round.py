"""Rounding a group in order with feedback: the native kernel against its definition, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compress import native
from compress.feedback import TINIEST, feed, inverse_upper, round_group
from tests.compress.conftest import correlated
from tests.conftest import needs_kernels

pytestmark = needs_kernels
ISAS = native._kernels.isas() if native.available() else []


def group(g: int, N: int, chance: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights (g, N), `inverse_upper` of their Hessian (1, g, g), scales and zeros (N,) for three bits; one row has none."""
    w, h = correlated(N, g, 3 * g + 1, chance)
    spread = w.T.amax(0) - w.T.amin(0)
    scale, zero = spread / 7, -w.T.amin(0) / (spread / 7).clamp(min=1e-6)
    scale[0] = TINIEST / 4
    return w.T.contiguous(), inverse_upper(h + 0.1 * h.diagonal(dim1=1, dim2=2).mean() * torch.eye(g)), scale, zero


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("g", "N"), [(1, 2), (16, 137), (7, 64), (64, 65)])
@pytest.mark.parametrize("far", [torch.inf, 0.2])
def test_it_rounds_as_the_definition_does(isa: str, g: int, N: int, far: float, chance: torch.Generator):
    now, upper, scale, zero = group(g, N, chance)
    reach = torch.full((g, 1), far * now.abs().mean().item())
    wanted = round_group(
        now, upper.expand(2, -1, -1), scale, zero, 7, reach.expand(g, N)
    )  # two output groups: on torch
    finer, made = torch.where(scale < TINIEST, 0, 1 / scale), now.clone()
    numbers = (t.numpy() for t in (made, feed(upper[0]).contiguous(), scale, finer, zero))
    native._kernels.round_group(*numbers, 7.0, reach.flatten().numpy(), isa)
    same = torch.isclose(made, wanted, rtol=1e-4, atol=1e-5 * now.abs().max().item()).all(
        0
    )  # of each output, all inputs
    assert same.float().mean() > 0.97, "a tie that falls the other way moves all that come after it"


def test_what_callers_use_is_the_kernel(chance: torch.Generator):
    now, upper, scale, zero = group(16, 40, chance)
    before = now.clone()
    made = round_group(now, upper, scale, zero, 7)
    assert torch.equal(now, before), "the weights stay"
    codes = made[:, 1:] / scale[1:] + zero[1:]
    assert torch.allclose(codes, codes.round(), atol=1e-3) and codes.min() > -0.5 and codes.max() < 7.5


def test_sizes_that_do_not_fit_are_refused(chance: torch.Generator):
    now, upper, scale, zero = (t.numpy() for t in group(8, 5, chance))
    with pytest.raises(ValueError, match="a group of 8 inputs"):
        native._kernels.round_group(now, upper[0, :4, :4].copy(), scale, scale, zero, 7.0, now[:, 0].copy())
