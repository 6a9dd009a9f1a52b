"""Native products against the definition, for every kind, instruction set and number of tokens, on odd sizes."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from compress import native
from compress.decode import Additive, Grid, Lut, Trellis
from compress.tables import Real, TwoLevel, Whole
from compress.transform import Transform
from compress.weight import LowRank, QuantizedWeight, Sparse
from tests.conftest import needs_kernels

pytestmark = needs_kernels
ISAS = native._kernels.isas() if native.available() else []
TOKENS = (1, 2, 3, 4, 5, 37)


def filled(weight: QuantizedWeight, chance: torch.Generator) -> QuantizedWeight:
    """Fresh codes and tables; scales around one, zeros within the codes."""
    for name, t in weight.state_dict().items():
        if t.dtype == torch.uint8:
            t.copy_(torch.randint(0, 256, t.shape, generator=chance, dtype=torch.uint8))
        elif t.dtype == torch.int8:
            t.copy_(torch.randint(-127, 128, t.shape, generator=chance, dtype=torch.int8))
        elif name.startswith("scale"):
            t.copy_(0.5 + torch.rand(t.shape, generator=chance))
        elif t.is_floating_point() and "sparse" not in name:
            t.copy_(torch.randn(t.shape, generator=chance))
    return weight


def outliers(N: int, D: int, share: float, chance: torch.Generator) -> Sparse:
    return Sparse.of(5 * torch.randn(N, D, generator=chance) * (torch.rand(N, D, generator=chance) < share))


def weights(chance: torch.Generator) -> dict[str, QuantizedWeight]:
    """Weights of every kind, in the shapes that methods and formats write, large enough for whole blocks and odd beyond."""
    made = {
        "grid, one scale a row": QuantizedWeight((75, 339), Grid(75, 339, 3), Real(75, 1)),
        "gptq": QuantizedWeight((75, 250), Grid(75, 256, 4, Whole(75, 2, 4)), Real(75, 2), Transform(75, 256, permuted=True)),
        "spqr": QuantizedWeight((75, 1060), Grid(75, 1072, 3, TwoLevel(75, 67, 3, 16)), TwoLevel(75, 67, 3, 16), sparse=outliers(75, 1060, 0.01, chance)),
        "rotated grid": QuantizedWeight((48, 384), Grid(48, 384, 2), Real(48, 3), Transform.random(48, 384, 128, 16, 0)),
        "lut of each row": QuantizedWeight((75, 339), Lut(75, 339, 3, rows=75), low_rank=LowRank(75, 339, 5)),
        "one lut": QuantizedWeight((75, 340), Lut(75, 340, 4, rows=1), Real(75, 5)),
        "trellis with groups": QuantizedWeight((145, 672), Trellis(160, 672, 2, 7), Real(160, 2), Transform.random(160, 672, 32, 32, 3)),
        "trellis with wide groups": QuantizedWeight((145, 512), Trellis(160, 512, 3, 8), Real(160, 2), Transform.random(160, 512, 512, 32, 3)),
        "trellis without scale": QuantizedWeight((75, 250), Trellis(80, 256, 2, 7), None, Transform.random(80, 256, 256, 16, 1)),
    }  # fmt: skip
    for bits in (2, 3, 4, 8):
        made[f"grid {bits}, groups, zeros"] = QuantizedWeight(
            (301, 1152), Grid(301, 1152, bits, Real(301, 9)), Real(301, 9)
        )
    for step in (2, 3, 4):
        for window in (6, 7, 8):
            made[f"trellis {step} {window}"] = QuantizedWeight((297, 700), Trellis(304, 704, step, window), Real(304, 1), Transform.random(304, 704, 64, 16, 2))  # fmt: skip
    for books, bits, group in ((2, 8, 8), (1, 8, 8), (1, 8, 4), (4, 4, 8), (1, 12, 8), (1, 16, 8), (3, 5, 4)):
        made[f"additive {books}x{bits} g{group}"] = QuantizedWeight(
            (301, 800), Additive(301, 800, books, bits, group), Real(301, 1)
        )
    made["additive int8"] = QuantizedWeight((301, 1496), Additive(301, 1496, 2, 8, 8, int8=True), Real(301, 1))
    return {name: filled(weight, chance) for name, weight in made.items()}


NAMES = list(weights(torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", NAMES)
def test_a_product_is_that_of_the_definition(name: str, isa: str, chance: torch.Generator):
    weight = weights(chance)[name]
    bias = torch.randn(weight.shape[0], generator=chance)
    made = native.linear(weight, bias, isa)
    assert np.allclose(made.decode(), weight.coded().detach().numpy(), rtol=1e-5, atol=1e-6)
    for tokens in TOKENS:
        x = torch.randn(tokens, weight.shape[1], generator=chance)
        exact = x.double() @ weight.dense().detach().double().T + bias.double()
        y = torch.from_numpy(made.multiply(x.numpy(), native.pool(3)))
        assert ((y - exact).norm(dim=1) <= 1e-3 * exact.norm(dim=1)).all(), tokens


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", NAMES)
def test_a_rounded_product_is_a_hundredth_off(name: str, isa: str, chance: torch.Generator):
    weight = weights(chance)[name]
    bias = torch.randn(weight.shape[0], generator=chance)
    made = native.linear(weight, bias, isa, exact=False)
    for tokens in (*TOKENS, 8, 300):
        x = torch.randn(tokens, weight.shape[1], generator=chance)
        exact = x.double() @ weight.dense().detach().double().T
        y = torch.from_numpy(made.multiply(x.numpy(), native.pool(3)))
        error = (y - bias - exact).norm(dim=1) / exact.norm(dim=1)
        assert error.max() <= 4e-2 and (tokens < 37 or error.mean() <= 1.5e-2), tokens


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_an_input_that_is_no_number_stays_in_its_token(wrong: float, isa: str, chance: torch.Generator):
    for name in ("grid 2, groups, zeros", "trellis 2 8", "additive 2x8 g8", "lut of each row"):
        weight = weights(chance)[name]
        for exact in (True, False):
            made = native.linear(weight, isa=isa, exact=exact)
            for tokens in (2, 40):
                x = torch.randn(tokens, weight.shape[1], generator=chance).numpy()
                x[1, 5] = wrong
                y = made.multiply(x, native.pool(2))
                assert not np.isfinite(y[1]).any() and np.isfinite(np.delete(y, 1, 0)).all(), (name, exact, tokens)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_dense_weight_multiplies(dtype: torch.dtype, isa: str, chance: torch.Generator):
    weight = torch.randn(75, 133, generator=chance).to(dtype)
    made, x = native.dense(native.array(weight), isa=isa), torch.randn(3, 133, generator=chance)
    exact = x.double() @ weight.double().T
    assert (torch.from_numpy(made.multiply(x.numpy(), native.pool(2))) - exact).norm() <= 1e-3 * exact.norm()


@pytest.mark.parametrize("name", NAMES)
def test_threads_do_not_change_a_digit(name: str, chance: torch.Generator):
    made = native.linear(weights(chance)[name])
    for tokens in (1, 4, 9):
        x = torch.randn(tokens, made.shape[1], generator=chance).numpy()
        alone = made.multiply(x, native.pool(1))
        assert all(np.array_equal(alone, made.multiply(x, native.pool(n))) for n in (2, 3, 5))


def test_a_set_that_the_machine_lacks_is_refused(monkeypatch: pytest.MonkeyPatch):
    weight = weights(torch.Generator().manual_seed(0))["one lut"]
    with pytest.raises(ValueError, match="does not run 'avx1024'"):
        native.linear(weight, isa="avx1024")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"numbers": [17]}, "1 to 16 bits"),
        ({"numbers": [3, 3]}, "unknown kind"),
        ({"kind": "gird"}, "unknown kind"),
        ({"N": 8}, "cover the weight|do not fit"),
        ({"D": 0}, "outputs and inputs"),
        ({"codes": np.zeros((9, 3), np.uint8)}, "codes do not fit"),
        ({"scale": np.ones((9, 2), np.float32)}, "scales do not fit"),
        ({"scale": np.ones((8, 1), np.float32)}, "scales do not fit"),
        ({"values": np.ones(3, np.float32)}, "table does not fit"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict, words: str):
    parts = {
        "outputs": 9,
        "inputs": 11,
        "kind": "grid",
        "N": 9,
        "D": 11,
        "numbers": [3],
        "codes": np.zeros((9, 5), np.uint8),
    }
    native._kernels.Linear(**parts, scale=np.ones((9, 1), np.float32))
    with pytest.raises(ValueError, match=words):
        native._kernels.Linear(**({"scale": np.ones((9, 1), np.float32)} | parts | change))


def test_two_threads_of_python_share_a_pool_without_mixing(chance: torch.Generator):
    from concurrent.futures import ThreadPoolExecutor

    made = native.linear(weights(chance)["grid 4, groups, zeros"])
    xs = [torch.randn(1, made.shape[1], generator=chance).numpy() for _ in range(40)]
    expected = [made.multiply(x, native.pool(1)) for x in xs]
    with ThreadPoolExecutor(4) as workers:
        got = list(workers.map(lambda x: made.multiply(x, native.pool(2)), xs))
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


def test_the_set_can_be_forced(monkeypatch: pytest.MonkeyPatch):
    import subprocess
    import sys

    code = "from compress import _kernels; print(_kernels.isa())"

    def run(name: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PANZA_ISA": name}, capture_output=True, text=True
        )

    assert run("plain").stdout.strip() == "plain"
    wrong = run("sse9")
    assert wrong.returncode == 1 and "this computer runs plain" in wrong.stderr
