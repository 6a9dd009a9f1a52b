"""Native products with sums of codewords: each way of cutting them up, hard inputs, any number of threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compress import native
from compress.decode import Additive
from compress.tables import Real
from compress.weight import QuantizedWeight
from tests.conftest import needs_kernels

pytestmark = needs_kernels
ISAS = native._kernels.isas() if native.available() else []


def additive(
    N: int, D: int, books: int, bits: int, group: int, scales: int, chance: torch.Generator
) -> QuantizedWeight:
    weight = QuantizedWeight((N, D), Additive(N, D, books, bits, group), Real(N, scales) if scales else None)
    weight.decode.codes.random_(0, 256, generator=chance)
    with torch.no_grad():
        weight.decode.codebooks.normal_(generator=chance)
        if scales:
            weight.scale.values.copy_(0.5 + torch.rand(N, scales, generator=chance))
    return weight


def error(weight: QuantizedWeight, x: torch.Tensor, isa: str, threads: int = 2) -> float:
    """Of the outputs, relative to what sums of such products amount to: a few outputs may all be near zero."""
    w = weight.dense().detach().double()
    y = torch.from_numpy(native.linear(weight, isa=isa).multiply(x.numpy(), native.pool(threads)))
    typical = (x.double().square() @ w.square().T).sum(1).sqrt()
    return ((y - x.double() @ w.T).norm(dim=1) / typical).max().item()


# N, D, books, bits, group, scales: rows beyond a chunk, blocks and slices that end early, each side of every limit
SHAPES = [
    (1, 8, 1, 8, 8, 1),
    (63, 64, 2, 8, 8, 0),
    (65, 1024, 2, 8, 8, 1),
    (130, 2072, 2, 8, 8, 1),
    (70, 1536, 2, 8, 8, 12),
    (70, 1560, 3, 8, 4, 5),
    (70, 1560, 3, 7, 4, 5),
    (33, 516, 1, 8, 4, 1),
    (40, 960, 5, 6, 3, 4),
    (66, 1032, 4, 4, 8, 1),
    (31, 1536, 4, 4, 8, 12),
    (70, 1560, 3, 4, 4, 5),
    (35, 1050, 1, 3, 2, 3),
    (35, 520, 7, 2, 8, 1),
    (40, 1024, 1, 1, 1, 1),
    (40, 1024, 1, 4, 64, 1),
    (40, 1024, 2, 8, 64, 2),
    (40, 1024, 2, 8, 128, 2),
    (37, 1040, 1, 16, 8, 5),
    (37, 1040, 2, 9, 16, 1),
    (37, 1040, 2, 10, 4, 1),
    (37, 1040, 1, 8, 8, 520),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape_multiplies(shape: tuple[int, ...], isa: str, chance: torch.Generator):
    weight = additive(*shape, chance)
    for tokens in (1, 3):
        assert error(weight, torch.randn(tokens, shape[1], generator=chance), isa) < 1e-3


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("books", "bits"), [(2, 8), (1, 8), (4, 4), (1, 12)])
def test_outliers_among_the_inputs_cost_little(books: int, bits: int, isa: str, chance: torch.Generator):
    weight = additive(512, 4096, books, bits, 8, 1, chance)
    x = torch.randn(4, 4096, generator=chance)
    assert error(weight, x, isa) < 1e-3
    x *= torch.where(torch.rand(x.shape, generator=chance) < 0.005, 20.0, 1.0)
    assert error(weight, x, isa) < 2e-3


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("books", "bits"), [(2, 8), (4, 4), (1, 12)])
def test_inputs_of_any_size_multiply(books: int, bits: int, isa: str, chance: torch.Generator):
    weight = additive(70, 1024, books, bits, 8, 1, chance)
    for size in (1e-25, 1e-12, 1e12, 1e25):
        assert error(weight, size * torch.randn(1, 1024, generator=chance), isa) < 1e-3
    made = native.linear(weight, isa=isa)
    assert (made.multiply(np.zeros((1, 1024), np.float32), native.pool(2)) == 0).all()
    for wrong in (float("nan"), float("inf"), -float("inf")):
        x = torch.randn(1, 1024, generator=chance).numpy()
        x[0, 700] = wrong
        assert not np.isfinite(made.multiply(x, native.pool(2))).any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "shape",
    [(200, 2048, 2, 8, 8, 1), (200, 2048, 4, 4, 8, 1), (200, 256, 2, 8, 8, 1), (200, 512, 1, 16, 8, 1)],
    ids=str,
)
def test_more_threads_than_slices_do_not_change_a_digit(shape: tuple[int, ...], isa: str, chance: torch.Generator):
    made = native.linear(additive(*shape, chance), isa=isa)
    x = torch.randn(2, shape[1], generator=chance).numpy()
    alone = made.multiply(x, native.pool(1))
    assert all(np.array_equal(alone, made.multiply(x, native.pool(n))) for n in (2, 7, 11))
