"""The GPU's kernels where there is no GPU: their sources run on emulated threads, and give what the definition gives."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from compress import cuda
from compress.cuda import PIECE, Card, Knobs, Layout, Packed
from compress.decode import Additive, Grid, Trellis
from compress.tables import Real, TwoLevel
from compress.transform import Transform
from compress.weight import QuantizedWeight
from tests.compress import cuda_on_cpu
from tests.compress.conftest import filled
from tests.compress.cuda_on_cpu import Emulator
from tests.compress.test_cuda import outliers, relative, weights

pytestmark = pytest.mark.skipif(
    cuda_on_cpu.COMPILER is None or sys.platform != "linux", reason="needs a C++ compiler and Linux' fibers"
)
HOPPER, AMPERE, TURING = 900, 800, 750
ROOM = {HOPPER: 227 * 1024, AMPERE: 99 * 1024, TURING: 64 * 1024}
half, bf16 = torch.float16, torch.bfloat16


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cuda_on_cpu")


@pytest.fixture
def card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Emulator]:
    """Makes compress.cuda launch on an emulated card of so many multiprocessors."""

    def make(arch: int, cores: int = 2, emulator: type[Emulator] = Emulator) -> Emulator:
        made = emulator(folder, arch)
        monkeypatch.setattr(cuda, "_card", lambda index: Card(cores, ROOM[arch], int(arch == HOPPER)))
        monkeypatch.setattr(cuda, "_kernel", made.kernel)
        return made

    return make


def in_place(weight: QuantizedWeight) -> QuantizedWeight:
    """Its codes without what stands before and behind them."""
    shape = (weight.decode.N, weight.decode.D) if weight.sparse is None else weight.shape
    return QuantizedWeight(shape, weight.decode, weight.scale, sparse=weight.sparse).requires_grad_(False)


def inputs(layout: Layout, D: int, B: int, dtype: torch.dtype) -> Tensor:
    return F.pad(torch.randn(B, D), (0, layout.pieces * PIECE - D)).to(dtype)


def multiply(packed: Packed, x: Tensor, bias: Tensor | None, k: Knobs | None = None, full: bool = False) -> Tensor:
    """What `cuda.product` launches, into memory full of NaNs."""
    layout, B, card = Layout(*packed.how), len(x), cuda._card(0)
    y = torch.full((B, layout.N), float("nan"), dtype=torch.float32 if full else x.dtype)
    if k is None and cuda.has_dots(layout, B, card):
        cuda.dots(x, packed.parts, layout, bias, y)
    else:
        (cuda.narrow if B <= cuda.NARROW else cuda.wide)(
            x, packed.parts, layout, bias, y, k or cuda.knobs(layout, B, card)
        )
    return y


PRODUCTS = [
    *(("spqr", B, half if B % 2 else bf16, HOPPER) for B in (1, 2, 3, 8, 9, 40)),
    *(("grid 3 g128", B, bf16 if B % 2 else half, HOPPER) for B in (1, 4, 16, 64)),
    *(("trellis 2 7", B, half, HOPPER) for B in (1, 12, 33)),
    *(("additive 2x8", B, half, HOPPER) for B in (1, 2, 10, 20)),
    *((name, 1, half, HOPPER) for name in ("grid 2 g16", "grid 4 g64", "grid 8 g32", "trellis 3 8", "additive 1x16", "gptq")),
    *((name, 4, bf16, HOPPER) for name in ("spqr of many inputs", "trellis and outliers", "trellis, groups", "additive 2x8", "trellis 4 6")),
    *((name, 17, half, HOPPER) for name in ("spqr of all rows", "grid 2 g16", "trellis and outliers")),
    *((name, B, bf16, AMPERE) for B in (2, 18) for name in ("spqr", "grid 3 g128", "trellis 3 8", "additive 3x8")),
    *((name, B, half, TURING) for B in (1, 9) for name in ("spqr", "grid 4 g128", "trellis 2 6", "additive 1x8")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "B", "dtype", "arch"), PRODUCTS)
def test_a_product_is_that_of_the_definition_whatever_the_order_of_threads(name, B, dtype, arch, card):
    weight = in_place(weights()[name])
    emulator, packed = card(arch), cuda.pack(weight)
    emulator.held = tuple(packed.parts)
    N, D = weight.shape
    x, bias = inputs(Layout(*packed.how), D, B, dtype), torch.randn(N).to(dtype)
    y = multiply(packed, x, bias)
    exact = x[:, :D].double() @ weight.dense().double().T + bias.double()
    rounded = F.linear(x[:, :D].float(), weight.dense().to(dtype).float(), bias.float()).to(dtype)
    assert relative(y, exact) <= 2 * relative(rounded, exact)
    assert torch.equal(y, multiply(packed, x, bias)), "another order of threads, other bits"


@pytest.mark.parametrize("tiles", [5, 6, 7, 9])
def test_every_share_of_a_multiprocessors_tiles_is_right(tiles, card):
    """Launches of one token, whose teams depend on how many tiles there are."""
    emulator = card(HOPPER, cores=1)
    N = 16 * tiles - 3
    two = lambda: TwoLevel(N, 40, 3, 16)  # noqa: E731
    for weight in (
        QuantizedWeight((N, 640), Grid(N, 640, 3, two()), two(), sparse=outliers(N, 640, 0.01)),
        QuantizedWeight((N, 640), Grid(N, 640, 3, Real(N, 5)), Real(N, 5)),
        QuantizedWeight((N, 2048), Grid(N, 2048, 3), Real(N, 16)),  # warps hold inputs
        QuantizedWeight((16 * tiles, 2048), Trellis(16 * tiles, 2048, 2, 7), Real(16 * tiles, 1)),
    ):
        packed = cuda.pack(filled(weight).requires_grad_(False))
        emulator.held = tuple(packed.parts)
        x = torch.randn(1, weight.shape[1]).half()
        exact = x.double() @ weight.dense().double().T
        assert relative(multiply(packed, x, None, full=True), exact) < 1e-3


def test_infinite_inputs_reach_what_they_are_multiplied_with_alone(card):
    weight = in_place(weights()["spqr"])
    emulator, packed = card(HOPPER), cuda.pack(weight)
    emulator.held = tuple(packed.parts)
    x = torch.zeros(2, Layout(*packed.how).pieces * PIECE).half()
    x[0, 0] = x[1, 512] = float("inf")
    exact = x[:, : weight.shape[1]] @ weight.dense().half().T
    clear = weight.dense()[:, [0, 512]].T.abs() > 0.01  # of weights that are rounded to nothing it is NaN,
    clear &= weight.sparse()[:, [0, 512]].T == 0  # and of an outlier and its weight, if their signs differ
    made = multiply(packed, x, None)
    assert exact[clear].isinf().all() and torch.equal(made[clear], exact[clear])


@pytest.mark.parametrize(
    "k",
    [
        Knobs(16, 2, 8, 2, run=4),
        Knobs(8, 3, 2, 1, inputs=0),
        Knobs(24, 2, 6),
        Knobs(12, 4, 4, run=2),
        Knobs(16, 3, 16, 1, held=1, keep=9),
        Knobs(8, 2, 4, 2, held=1, keep=2),
    ],
)
def test_knobs_change_no_number_but_by_rounding(k, card):
    emulator = card(HOPPER)
    for decode, groups, sparse in (
        (Grid(70, 1280, 4), 1, 0.02),
        (Grid(70, 1280, 3), 10, 0),
        (Trellis(64, 1280, 2, 7), 1, 0),
        (Additive(70, 1280, 2, 8, 8), 1, 0),
    ):
        N = decode.N
        few = outliers(N, 1280, sparse) if sparse else None
        weight = filled(QuantizedWeight((N, 1280), decode, Real(N, groups), sparse=few))
        packed = cuda.pack(weight.requires_grad_(False))
        emulator.held = tuple(packed.parts)
        x = torch.randn(3, 1280).half()
        exact = x.double() @ weight.dense().double().T
        assert relative(multiply(packed, x, None, k, full=True), exact) < 1e-3


@pytest.mark.parametrize("arch", [HOPPER, TURING])
@pytest.mark.parametrize("name", ["spqr", "trellis 3 7", "additive 2x8", "grid 2 g16"])
def test_a_decoded_weight_is_the_definitions(name, arch, card):
    weight = in_place(weights()[name])
    emulator, packed = card(arch), cuda.pack(weight)
    emulator.held = tuple(packed.parts)
    made = cuda.decoded._init_fn(packed.parts, packed.how, half)[:, : weight.shape[1]]
    assert relative(made[: weight.shape[0]], weight.dense().double()) < 4e-4


@pytest.mark.parametrize("block", [1, 8, 64, 512, 2048, 8192])
def test_a_rotation_is_the_definitions(block, card):
    card(HOPPER)
    D = block * 3 if block > 64 else 320
    transform = Transform.random(D, D, block, 1, 0) if block > 1 else Transform(D, D, permuted=True)
    if block == 1:
        transform.order.copy_(torch.randperm(D))
    x = torch.randn(2, D)
    order = None if transform.order is None else transform.order.int()
    rotated = cuda.rotated._init_fn(x, order, transform.in_signs, None, block, False, D, D + 8, torch.float32)
    assert relative(rotated[:, :D], transform.inputs(x).double()) < 1e-6 and not rotated[:, D:].any()


# --- the emulator itself: what lacks in a kernel shows ---

LACKS = {  # tokens; what stands in the kernel, and what instead
    "codes are read before they are there": (2, "            barrier_wait(mine_full + at * 8, turn);\n", ""),
    "sums are read before they are there": (2, "        together(team);\n        const int steps", "        const int steps"),
    "sums are written before they are read": (2, "        if (step == 0) together(team);  // nobody reads the last sums any more\n", ""),
    "inputs are read before they are there": (2, "    __syncthreads();\n\n    const u16* mine", "    const u16* mine"),
    "a record too far": (2, "const char* from = record_of(W, ahead_tile, ahead_piece);", "const char* from = record_of(W, ahead_tile + W.tiles, ahead_piece);"),
    "a piece is read before it is there": (20, "            barrier_wait(full + 8 * at, turn);\n", ""),
    "more is used than was asked for": (2, "u16* kept = (u16*)(factors + KEEP * TEAMS * R * 16);", "u16* kept = (u16*)(factors + KEEP * TEAMS * R * 16) + 2048;"),
    "a piece is filled again before it is read": (20, "            if (ahead - begin >= DEPTH) barrier_wait(spent + 8 * slot, (ahead - begin) / DEPTH + 1 & 1);\n", ""),
}  # fmt: skip


@pytest.mark.parametrize("what", list(LACKS))
def test_what_lacks_in_a_kernel_is_found(what, card, monkeypatch):
    B, old, new = LACKS[what]
    translated = cuda_on_cpu.translated

    def damaged(source: str, *more) -> str:
        assert source.count(old) == 1, "the kernel says it otherwise by now"
        return translated(source.replace(old, new), *more)

    monkeypatch.setattr(cuda_on_cpu, "translated", damaged)
    weight = filled(QuantizedWeight((270, 640), Grid(270, 640, 3), Real(270, 5))).requires_grad_(False)
    emulator, packed = card(HOPPER, cores=1), cuda.pack(weight)
    emulator.held = tuple(packed.parts)
    x = torch.randn(B, 640).half()
    exact = x.double() @ weight.dense().double().T
    for _ in range(40):
        try:
            if not relative(multiply(packed, x, None, Knobs(16, 2, 4, 2, run=2) if B <= 8 else None), exact) < 2e-3:
                return
        except AssertionError as fault:
            assert "narrow" in str(fault) or "wide" in str(fault)
            return
    raise AssertionError("forty orders of threads, and nothing seen")
