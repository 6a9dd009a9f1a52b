"""Native products of grids, tables of levels and dense weights: groups, counts of tokens, outliers, hard inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compress import native
from compress.decode import Grid, Lut
from compress.tables import Real, TwoLevel, Whole
from compress.transform import Transform
from compress.weight import QuantizedWeight, Sparse
from tests.conftest import needs_kernels

pytestmark = needs_kernels
ISAS = native._kernels.isas() if native.available() else []
COUNTS = (1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 24, 50, 100)


def filled(weight: QuantizedWeight, chance: torch.Generator) -> QuantizedWeight:
    for name, t in weight.state_dict().items():
        if t.dtype == torch.uint8:
            t.copy_(torch.randint(0, 256, t.shape, generator=chance, dtype=torch.uint8))
        elif t.is_floating_point() and "sparse" not in name:
            t.copy_(0.5 + torch.rand(t.shape, generator=chance))
    return weight


def sparse(N: int, D: int, chance: torch.Generator) -> Sparse:
    return Sparse.of(5 * torch.randn(N, D, generator=chance) * (torch.rand(N, D, generator=chance) < 0.02))


def grids(chance: torch.Generator) -> dict[str, QuantizedWeight]:
    made = {}
    for bits in (2, 3, 4, 8):
        for width in (16, 32, 64, 96, 128, 272, 816):
            N, D = 43, 816 // width * width
            zero = (None, Whole(N, D // width, bits), Real(N, D // width))[(bits + width // 16) % 3]
            made[f"{bits} bits g{width}"] = QuantizedWeight((N, D), Grid(N, D, bits, zero), Real(N, D // width))
    N, D = 91, 1200
    made["groups of scales and zeros"] = QuantizedWeight((N, D), Grid(N, D, 4, Whole(N, 75, 4)), Real(N, 25))
    made["more scales than zeros"] = QuantizedWeight((N, D), Grid(N, D, 3, Real(N, 5)), Real(N, 25))
    made["zeros that do not divide the scales"] = QuantizedWeight((N, D), Grid(N, D, 3, Real(N, 3)), Real(N, 5))
    made["groups too small"] = QuantizedWeight((N, D), Grid(N, D, 2), Real(N, 150))
    made["5 bits"] = QuantizedWeight((N, D), Grid(N, D, 5), Real(N, 75))
    made["without scale"] = QuantizedWeight((N, D), Grid(N, D, 4), None)
    made["one row"] = QuantizedWeight((1, 1), Grid(1, 1, 8), None)
    for rows, bits in ((16, 3), (32, 4), (8, 3), (16, 5), (1 << 20, 3)):
        two = [TwoLevel(N, 75, bits, rows) for _ in range(2)]
        made[f"two levels, {rows} rows, {bits} bits"] = QuantizedWeight((N, D), Grid(N, D, 3, two[0]), two[1], sparse=sparse(N, D, chance))  # fmt: skip
    two = [TwoLevel(112, 19, 3, 16) for _ in range(2)]
    made["two levels, padded"] = QuantizedWeight((N, 1200), Grid(112, 1216, 2, two[0]), two[1], sparse=sparse(N, D, chance))  # fmt: skip
    made["outliers of a rotated weight"] = QuantizedWeight((N, D), Grid(96, 1216, 4), Real(96, 1), Transform.random(96, 1216, 64, 32, 0), sparse=sparse(N, D, chance))  # fmt: skip
    for bits in (1, 2, 3, 4, 5):
        made[f"levels of each row, {bits} bits"] = QuantizedWeight((N, D), Lut(N, D, bits, N))
        made[f"levels, {bits} bits and scales"] = QuantizedWeight((N, D), Lut(N, D, bits, 1), Real(N, 15))
    return {name: filled(weight, chance) for name, weight in made.items()}


NAMES = list(grids(torch.Generator().manual_seed(0)))


def close(y: np.ndarray, exact: torch.Tensor, error: float) -> bool:
    return bool(((torch.from_numpy(y) - exact).norm(dim=1) <= error * exact.norm(dim=1)).all())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", NAMES)
def test_every_count_of_tokens_gives_the_product_of_the_definition(name: str, isa: str, chance: torch.Generator):
    weight = grids(chance)[name]
    made, dense = native.linear(weight, isa=isa), weight.dense().detach().double()
    few = min(weight.shape) == 1  # one number may be almost nothing but for rounding
    for tokens in COUNTS if not few else ():
        x = torch.randn(tokens, weight.shape[1], generator=chance)
        assert close(made.multiply(x.numpy(), native.pool(2)), x.double() @ dense.T, 1e-3), tokens
    wide = torch.randn(3, weight.shape[1], generator=chance)
    wide[torch.rand(wide.shape, generator=chance) < 0.005] *= 20
    assert close(made.multiply(wide.numpy(), native.pool(1)), wide.double() @ dense.T, 2e-3)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["3 bits g16", "4 bits g128", "8 bits g816", "levels of each row, 3 bits"])
def test_inputs_of_any_size_and_kind(name: str, isa: str, chance: torch.Generator):
    made = native.linear(weight := grids(chance)[name], isa=isa)
    x = torch.randn(1, weight.shape[1], generator=chance)
    exact = x.double() @ weight.dense().detach().double().T
    for size in (1e-20, 1.0, 1e20):
        assert close(made.multiply((x * size).numpy(), native.pool(1)), exact * size, 1e-3), size
    assert not made.multiply(np.zeros_like(x.numpy()), native.pool(1)).any()
    for wrong in (float("nan"), float("inf"), float("-inf")):
        x[0, 3] = wrong
        assert not np.isfinite(made.multiply(x.numpy(), native.pool(1))).any()


@pytest.mark.parametrize("isa", ISAS)
def test_levels_far_from_zero_or_all_equal(isa: str, chance: torch.Generator):
    weight = filled(QuantizedWeight((40, 512), Lut(40, 512, 2, 40)), chance)
    with torch.no_grad():
        weight.decode.levels[:20] = 3.0
        weight.decode.levels[20:] += 30
    x = 0.5 + torch.rand(2, 512, generator=chance)  # a sum near zero would have no digits
    y = native.linear(weight, isa=isa).multiply(x.numpy(), native.pool(1))
    assert close(y, x.double() @ weight.dense().detach().double().T, 1e-3)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [np.float16, np.uint16])
def test_a_dense_weight_at_every_count_of_tokens(dtype: type, isa: str, chance: torch.Generator):
    values = torch.randn(75, 531, generator=chance).bfloat16()
    made = native.dense(native.array(values) if dtype is np.uint16 else values.float().numpy(), isa=isa)
    for tokens in COUNTS:
        x = torch.randn(tokens, 531, generator=chance)
        assert close(made.multiply(x.numpy(), native.pool(3)), x.double() @ values.double().T, 1e-3), tokens


@pytest.mark.parametrize("name", NAMES)
def test_many_tokens_and_threads_do_not_change_a_digit(name: str, chance: torch.Generator):
    made = native.linear(grids(chance)[name])
    x = torch.randn(29, made.shape[1], generator=chance).numpy()
    alone = made.multiply(x, native.pool(1))
    assert all(np.array_equal(alone, made.multiply(x, native.pool(n))) for n in (2, 3, 5))


def test_outliers_may_come_in_any_order_but_must_fit():
    def linear() -> object:
        return native._kernels.Linear(2, 20, "grid", 2, 20, [8], np.full((2, 20), 128, np.uint8))

    made, x = linear(), np.arange(40, dtype=np.float32).reshape(2, 20)
    values = np.array([1, 2, 4], np.float16).view(np.uint16)
    made.set_sparse(np.array([0, 2, 3], np.int32), np.array([7, 3, 19], np.uint16), values)
    assert np.allclose(made.multiply(x, native.pool(2)), [[13, 76], [73, 156]], 1e-5)
    many = np.repeat(x, 20, 0)
    assert np.allclose(made.multiply(many, native.pool(2)), np.repeat([[13, 76], [73, 156]], 20, 0), 1e-5)
    for starts, columns in (
        ([0, 2], [7, 3]),
        ([0, 3, 2], [7, 3, 19]),
        ([1, 2, 3], [7, 3, 19]),
        ([0, 2, 3], [7, 3, 20]),
    ):
        with pytest.raises(ValueError, match="outliers"):
            linear().set_sparse(np.array(starts, np.int32), np.array(columns, np.uint16), values[: len(columns)])


@pytest.mark.parametrize(
    "parts",
    [
        (np.zeros((9, 2), np.uint8), np.ones(1, np.float32), np.ones(1, np.float32), 16),
        (np.zeros((9, 1), np.uint8), np.ones(2, np.float32), np.ones(1, np.float32), 16),
        (np.zeros((9, 1), np.uint8), np.ones(1, np.float32), np.ones(1, np.float32), 0),
        (np.zeros((9, 1), np.uint8), np.ones(1, np.float32), np.ones(1, np.float32), 8),
    ],
)
def test_a_second_level_that_does_not_fit_is_refused(parts: tuple):
    codes, scale = np.zeros((9, 4), np.uint8), np.ones((9, 1), np.float32)
    with pytest.raises(ValueError, match="second level"):
        native._kernels.Linear(9, 10, "grid", 9, 10, [3], codes, scale, scale_parts=parts)
