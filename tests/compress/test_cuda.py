"""The GPU's products: the layout on any machine, bit by bit; the arithmetic where there is a GPU."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from compress import cuda, nvrtc
from compress.cuda import PIECE, TILE, Card, Layout, Packed
from compress.decode import Additive, Grid, Lut, Trellis
from compress.errors import CompressError
from compress.linear import QuantizedLinear
from compress.tables import Real, TwoLevel, Whole
from compress.transform import Transform
from compress.weight import LowRank, QuantizedWeight, Sparse
from tests.compress.conftest import filled

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def outliers(N: int, D: int, share: float) -> Sparse:
    return Sparse.of(5 * torch.randn(N, D) * (torch.rand(N, D) < share))


def weights() -> dict[str, QuantizedWeight]:
    """Every kind that the kernels take, in the shapes that methods write: odd outputs, inputs padded to the group."""
    made = {
        "grid, one scale a row": QuantizedWeight((75, 339), Grid(75, 339, 3), Real(75, 1)),
        "grid without scale": QuantizedWeight((16, 128), Grid(16, 128, 2)),
        "grid, groups of 192": QuantizedWeight((40, 768), Grid(40, 768, 4, Whole(40, 4, 4)), Real(40, 4)),
        "grid, groups of 256": QuantizedWeight((40, 768), Grid(40, 768, 3), Real(40, 3)),
        "grid, zeros of rows": QuantizedWeight((40, 700), Grid(40, 700, 3, Whole(40, 1, 3)), Real(40, 1)),
        "gptq": QuantizedWeight((75, 250), Grid(75, 256, 4, Whole(75, 2, 4)), Real(75, 2), Transform(75, 256, permuted=True)),
        "spqr": QuantizedWeight((75, 1060), Grid(75, 1072, 3, TwoLevel(75, 67, 3, 16)), TwoLevel(75, 67, 3, 16), sparse=outliers(75, 1060, 0.01)),
        "spqr of all rows": QuantizedWeight((50, 256), Grid(50, 256, 2, TwoLevel(50, 16, 4, 99)), TwoLevel(50, 16, 4, 99), sparse=outliers(50, 256, 0.1)),
        "spqr of many inputs": QuantizedWeight((24, 9216), Grid(24, 9216, 3, TwoLevel(24, 576, 3, 16)), TwoLevel(24, 576, 3, 16), sparse=outliers(24, 9216, 0.01)),
        "grid and outliers": QuantizedWeight((70, 512), Grid(70, 512, 4), Real(70, 4), sparse=outliers(70, 512, 0.02)),
        "rotated grid": QuantizedWeight((48, 384), Grid(48, 384, 2), Real(48, 3), Transform.random(48, 384, 128, 16, 0)),
        "low rank": QuantizedWeight((48, 384), Grid(48, 384, 2), Real(48, 3), low_rank=LowRank(48, 384, 5)),
        "trellis without scale": QuantizedWeight((75, 250), Trellis(80, 256, 2, 7), None, Transform.random(80, 256, 256, 16, 1)),
        "trellis, groups": QuantizedWeight((80, 512), Trellis(80, 512, 3, 8), Real(80, 16)),
        "additive, groups": QuantizedWeight((80, 512), Additive(80, 512, 2, 8, 8), Real(80, 4)),
        "additive 1x16": QuantizedWeight((37, 264), Additive(37, 264, 1, 16, 8), Real(37, 1)),
        "additive int8": QuantizedWeight((301, 1496), Additive(301, 1496, 2, 8, 8, int8=True), Real(301, 1)),
        "spqr, groups of 32": QuantizedWeight((75, 1056), Grid(75, 1056, 2, TwoLevel(75, 33, 3, 32)), TwoLevel(75, 33, 3, 32), sparse=outliers(75, 1056, 0.01)),
        "trellis and outliers": QuantizedWeight((80, 512), Trellis(80, 512, 2, 7), Real(80, 1), sparse=outliers(80, 512, 0.02)),
        "additive and outliers": QuantizedWeight((70, 512), Additive(70, 512, 2, 8, 8), Real(70, 1), sparse=outliers(70, 512, 0.02)),
        "larger than a block": QuantizedWeight((1056, 2048), Grid(1056, 2048, 3), Real(1056, 16), Transform.random(1056, 2048, 2048, 32, 3)),
    }  # fmt: skip
    for bits in (2, 3, 4, 8):
        for group in (16, 32, 64, 128):
            G = 1152 // group
            made[f"grid {bits} g{group}"] = QuantizedWeight((61, 1152), Grid(61, 1152, bits, Real(61, G)), Real(61, G))
    for step in (2, 3, 4):
        for window in (6, 7, 8):
            made[f"trellis {step} {window}"] = QuantizedWeight((297, 700), Trellis(304, 704, step, window), Real(304, 1), Transform.random(304, 704, 64, 16, 2))  # fmt: skip
    for books in (1, 2, 3, 4, 5, 8):
        made[f"additive {books}x8"] = QuantizedWeight((137, 800), Additive(137, 800, books, 8, 8), Real(137, 1))
    for weight in made.values():
        filled(weight)
    return made


NAMES = list(weights())


# --- on any machine: what lies where ---


def records(packed: Packed, layout: Layout) -> Tensor:
    """(tiles, pieces, RECORD) uint8."""
    tiles = packed.parts[0].view(layout.tiles, -1)
    return tiles[:, : tiles.shape[1] - layout.pad].view(layout.tiles, layout.pieces, layout.record)


def lane_words(packed: Packed, layout: Layout) -> Tensor:
    """(tiles, pieces, 32, words) int64: what each lane loads, as `load` of product.cu does."""
    words = 2 * layout.bits
    flat = records(packed, layout)[..., : 128 * words].contiguous().view(torch.int32)
    most = words // 4 * 4
    fours = flat[..., : 32 * most].unflatten(2, (most // 4, 32, 4)).permute(0, 1, 3, 2, 4).flatten(3)
    rest = flat[..., 32 * most :].unflatten(2, (32, -1)) if words > most else flat.new_zeros(*fours.shape[:3], 0)
    return torch.cat((fours, rest), 3).long() & 0xFFFFFFFF


def codes_of_lanes(packed: Packed, layout: Layout) -> Tensor:
    """(tiles, pieces, 32, 64) codes, in the order j, m, pair, [first, second], [low, high], as `decode` takes them."""
    w = lane_words(packed, layout)
    if layout.kind == 0:
        codes, mask, per = [], (1 << layout.bits) - 1, 16 // layout.bits
        for q, c in itertools.product(range(8), range(4)):
            if layout.bits == 3:
                byte = w[..., 4 + c // 2] >> 8 * (c % 2)
                last = byte >> 6 & 0x30003 | (w[..., c] >> 15 & 0x10001) << 2
                pair = w[..., c] >> 3 * q if q < 5 else (byte >> 3, byte, last)[q - 5]
            else:
                pair = w[..., q // per * 4 + c] >> q % per * layout.bits
            codes += [pair & mask, pair >> 16 & mask]
        return torch.stack(codes, -1)
    raise AssertionError("a grid")


def places(layout: Layout) -> tuple[Tensor, Tensor]:
    """Outputs (8, 2) of lanes 4 g + t within a tile; inputs (4, 4, 8) of lane t in each 32."""
    g, second = torch.arange(8)[:, None], torch.arange(2)
    chained = layout.kind == 2
    rows = 2 * g + second if chained else g + 8 * second
    t, i = torch.arange(4)[:, None], torch.arange(8)
    inputs = 4 * t + i % 4 + 16 * (i // 4) if chained else 8 * t + i
    j = torch.arange(4)[:, None, None]
    if layout.groups == 8 and not chained:  # 16 of 64 lie together
        return rows, 64 * (j // 2) + 16 * t + 8 * (j % 2) + i
    return rows, 32 * j + inputs  # (j, t, 8)


def test_a_grid_lies_in_the_order_of_the_tensor_cores():
    for bits, group in itertools.product((2, 3, 4, 8), (1, 16)):
        weight = filled(QuantizedWeight((45, 336), Grid(45, 336, bits), Real(45, 1 if group == 1 else 21)))
        packed = cuda.pack(weight)
        layout = Layout(*packed.how)
        codes = codes_of_lanes(packed, layout).view(layout.tiles, layout.pieces, 8, 4, 4, 2, 2, 2, 2)
        whole = torch.zeros(layout.tiles, TILE, layout.pieces, PIECE, dtype=torch.long)
        rows, inputs = places(layout)
        for g in range(8):
            for t in range(4):
                for second in range(2):
                    part = codes[:, :, g, t, :, :, :, second].flatten(4).flatten(2)  # j, m, e, two: 4 x 8
                    whole[:, rows[g, second], :, inputs[:, t].flatten()] = part
        made = whole.view(layout.tiles * TILE, -1)[:45, :336]
        assert torch.equal((made - layout.center).float(), weight.decode().detach())


def test_an_additive_weight_lies_in_the_order_of_the_tensor_cores():
    for books, bits in ((1, 8), (2, 8), (3, 8), (1, 16)):
        weight = filled(QuantizedWeight((45, 328), Additive(45, 328, books, bits, 8), Real(45, 1)))
        packed = cuda.pack(weight)
        layout = Layout(*packed.how)
        data = lane_words(packed, layout).to(torch.int32).view(torch.uint8).long()
        data = data.view(layout.tiles, layout.pieces, 8, 4, 4, 2, -1)  # g, t, j, half, bytes
        whole = data.permute(0, 5, 2, 1, 4, 3, 6).reshape(layout.tiles * TILE, layout.pieces * 16, -1)[:45, :41]
        whole = whole[..., :1] + 256 * whole[..., 1:] if bits == 16 else whole
        assert torch.equal(whole.int(), weight.decode.indices())


def test_a_trellis_lies_in_the_order_of_the_tensor_cores():
    """Bytes of lanes put in a row are the chain again, and the tail is what follows each piece."""
    for step in (2, 3, 4):
        weight = filled(QuantizedWeight((48, 336), Trellis(48, 336, step, 8), Real(48, 1)))
        packed = cuda.pack(weight)
        layout = Layout(*packed.how)
        data = lane_words(packed, layout).to(torch.int32).view(torch.uint8)  # (tiles, pieces, 32, 8 step)
        if step == 3:
            pairs, third = data[..., :16].unflatten(3, (8, 2)), data[..., 16:].unflatten(3, (8, 1))
            data = torch.cat((pairs, third), 4).flatten(3)
        parts = data.view(layout.tiles, layout.pieces, 8, 4, 8, step)  # g, t, tile of inputs, bytes
        chain = parts.permute(0, 1, 4, 3, 2, 5).reshape(layout.tiles, -1)
        codes = weight.decode.codes
        assert torch.equal(chain[:, : codes.shape[1]], codes[:, : chain.shape[1]])
        after = F.pad(codes, (0, chain.shape[1] + 1 - codes.shape[1]))[:, chain.shape[1]]
        assert torch.equal(packed.parts[0].view(layout.tiles, -1)[:, -layout.pad], after)


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("grid") or n in ("gptq", "trellis, groups")])
def test_scales_and_zeros_lie_where_lanes_read_them(name: str):
    weight = weights()[name]
    packed = cuda.pack(weight)
    layout = Layout(*packed.how)
    if layout.scale != 1:
        assert layout.scale == 0 and layout.record == 256 * layout.bits
        return
    entries = records(packed, layout)[..., 256 * layout.bits :].contiguous().view(torch.float16)
    entries = entries[..., : 16 * layout.groups * (1 + layout.zeros)].float()
    entries = entries.reshape(layout.tiles, layout.pieces * layout.groups, 8, 1 + layout.zeros, 2)
    rows, _ = places(layout)
    for which, table in enumerate((weight.scale, getattr(weight.decode, "zero", None))[: 1 + layout.zeros]):
        values = table().detach()
        values = values.repeat_interleave(weight.decode.D // values.shape[1], 1)  # (N, D)
        for n in range(0, weight.decode.N, 7):
            g, second = (rows == n % TILE).nonzero()[0].tolist()
            for d in range(0, weight.decode.D, 5):
                group = d // (PIECE // layout.groups)
                assert entries[n // TILE, group, g, which, second] == values[n, d]


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("spqr") or n.endswith("outliers")])
def test_outliers_lie_by_pieces_each_with_its_place_and_a_share_of_its_value(name: str):
    weight = weights()[name]
    packed = cuda.pack(weight)
    layout = Layout(*packed.how)
    where = records(packed, layout)[..., -16:].contiguous().view(torch.int32).flatten(0, 1)
    outliers = packed.parts[2].long() & 0xFFFFFFFF
    assert torch.equal(where[:-1, 1], where[1:, 0]) and where[0, 0] == 0
    assert where[-1, 1] == len(outliers) - cuda.BEHIND == len(weight.sparse.values)
    assert not outliers[len(weight.sparse.values) :].any(), "what may be read behind them is nothing"
    power = 2.0 ** cuda._power(weight)  # of rows
    assert torch.equal(packed.parts[3].float(), power) if layout.scale == 2 else (power == 1).all()
    _, inputs = places(layout)
    order = (
        inputs.reshape(2, 2, 4, 8).transpose(1, 2).flatten() if layout.fine else inputs.flatten()
    )  # as kept for lanes
    whole = torch.zeros(layout.tiles * TILE, layout.pieces * PIECE)
    for piece in range(layout.tiles * layout.pieces):
        for entry in outliers[where[piece, 0] : where[piece, 1]].tolist():
            value = torch.tensor(entry >> 16).to(torch.uint16).view(torch.float16)
            row = entry >> 12 & 15 | piece // layout.pieces * TILE
            assert (entry & 4095) // PIECE == piece % layout.pieces % 32
            whole[row, order[entry & 127] + piece % layout.pieces * PIECE] = value * power[row]
    off = (whole[: weight.sparse.N, : weight.sparse.D] - weight.sparse()).abs()
    least = power[: weight.sparse.N, None] * 2**-25 * (layout.scale == 2)
    assert (off <= least).all(), "divided by the power, the smallest are fp16's tiny numbers"


def test_rows_of_two_levels_are_divided_each_by_its_own_power_of_two():
    """A row with large scales takes no digits from others; scales of zero take none from outliers."""
    weight = filled(
        QuantizedWeight(
            (64, 256),
            Grid(64, 256, 3, TwoLevel(64, 16, 3, 16)),
            TwoLevel(64, 16, 3, 16),
            sparse=outliers(64, 256, 0.02),
        )
    )
    scale = weight.scale.scale  # (blocks of 16 rows, groups)
    scale.data[:] = 0.001
    scale.data[1, 3], scale.data[2] = 4, 0
    weight.sparse.values.data[:] = 1e-3
    power = cuda._power(weight).view(4, 16)
    assert (power == power[:, :1]).all(), "rows that share their scales' scales"
    assert power[1, 0] - power[0, 0] >= 10 and power[2, 0] == -14 and power[0, 0] == power[3, 0]
    layout = Layout(*cuda.pack(weight).how)
    levels = records(cuda.pack(weight), layout)[..., 256 * 3 + 128 :].contiguous().view(torch.float16)
    larger = levels[..., : 8 * 4].unflatten(-1, (8, 4))[..., 0].flatten(1).float()
    assert (
        torch.equal(larger, (scale.float() * 2.0 ** (cuda.TINY - power[:, :1])).half().float())
        and larger.isfinite().all()
    )
    weight.scale.scale.data[0, 0] = 1000
    assert cuda.pack(weight) is None, "left to torch"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tables_are_packed_as_halves_also_of_a_model_moved_to_another_dtype(dtype: torch.dtype):
    for name in ("spqr", "spqr of all rows", "gptq", "trellis 2 7", "additive 2x8", "additive int8", "trellis, groups"):
        weight = weights()[name].to(dtype)
        again = copy.deepcopy(weight).half()
        for part, of_half in zip(cuda.pack(weight).parts, cuda.pack(again).parts, strict=True):
            assert part.dtype == of_half.dtype and torch.equal(part, of_half)


def test_a_large_weight_is_packed_some_rows_at_a_time():
    N, D = 4099, 4104
    assert N * D > cuda.AT_ONCE
    for decode, part in (
        (Grid(N, D, 4), lambda n: Grid(n, D, 4)),
        (Additive(N, D, 2, 8, 8), lambda n: Additive(n, D, 2, 8, 8)),
    ):
        decode.codes.random_(0, 256)
        packed = cuda.pack(QuantizedWeight((N, D), decode)).parts[0]
        for rows in (slice(0, 16), slice(4064, 4080), slice(4080, N)):
            alone = part(len(range(N)[rows]))
            alone.codes = decode.codes[rows]
            expected = cuda.pack(QuantizedWeight((alone.N, D), alone)).parts[0]
            assert torch.equal(packed[rows.start // TILE : -(-rows.stop // TILE)], expected)


def test_a_packed_weight_follows_its_tensors():
    weight = filled(QuantizedWeight((4096, 128), Grid(4096, 128, 4), Real(4096, 1)))
    layer, values = QuantizedLinear(weight).requires_grad_(False), weight.scale.values
    assert layer.packed() is layer.packed()
    for _ in range(20):
        new = torch.rand(4096, 1)
        values.data = torch.empty(0).half()  # its memory is free, and where the next tensor may lie
        values.data = new.half()
        assert torch.equal(layer.packed().parts[3], values[:, 0])
    for change in (lambda: weight.decode.codes.random_(0, 256), lambda: values.mul_(2)):
        change()
        fresh = cuda.pack(weight).parts
        assert all(torch.equal(a, b) for a, b in zip(layer.packed().parts, fresh, strict=True))
    assert copy.deepcopy(layer)._packed.packed is None, "a copy makes its own"


def test_layers_off_the_gpu_are_left_to_torch():
    weight = filled(QuantizedWeight((32, 128), Grid(32, 128, 4), Real(32, 1)))
    layer = QuantizedLinear(weight).requires_grad_(False)
    assert not layer.multiplies_codes(torch.ones(1, 128).half())
    assert layer.to("meta")(torch.empty(2, 128, device="meta").half()).shape == (2, 32)


def test_kinds_without_kernels_are_left_to_torch():
    assert cuda.pack(filled(QuantizedWeight((75, 339), Lut(75, 339, 3, rows=75)))) is None
    assert cuda.pack(filled(QuantizedWeight((32, 64), Additive(32, 64, 4, 4, 8)))) is None
    for G in (4, 32):  # groups of 128, and of 16 as SpQR has them
        mixed = QuantizedWeight((40, 512), Grid(40, 512, 3, TwoLevel(40, 1, 3, 16)), TwoLevel(40, G, 3, 16))
        assert cuda.pack(filled(mixed)) is None
    assert cuda.pack(filled(QuantizedWeight((32, 72), Grid(32, 72, 4), Real(32, 9)))) is None  # groups of 8


def launches(layout: Layout, bf16: bool, card: Card) -> Iterator[cuda.Launch]:
    """One of each kernel that the card would run."""
    yield cuda.narrow_launch(layout, 8, bf16, cuda.knobs(layout, 8, card), card.room)
    yield cuda.wide_launch(layout, 16, bf16, cuda.knobs(layout, 16, card), card.room)
    yield cuda.dense_launch(layout, bf16, card.room)
    if cuda.has_dots(replace(layout, tiles=8 * card.cores), 1, card):
        yield cuda.dots_launch(layout, bf16)


def test_every_kernel_compiles_for_old_and_new_cards():
    try:
        compiler = nvrtc.find_compiler()
    except OSError:
        pytest.skip("there is no NVRTC")
    source = (nvrtc.sources() / "product.cu").read_bytes()
    for name in ("spqr", "trellis 3 7", "additive 2x8"):
        layout = Layout(*cuda.pack(weights()[name]).how)
        for capability, bf16 in (((7, 5), False), ((8, 0), True), ((9, 0), True), ((12, 0), True)):
            for launch in launches(layout, bf16, Card(132, 64 * 1024, int(capability == (9, 0)))):
                assert nvrtc.compiled(source, capability, compiler, launch.flags)[1:4] == b"ELF"
    for block in (1, 16, 512, 8192):
        nvrtc.compiled((nvrtc.sources() / "hadamard.cu").read_bytes(), (7, 5), compiler, (f"-DBLOCK={block}",))


@pytest.mark.parametrize("room", [64 * 1024, 99 * 1024, 163 * 1024, 227 * 1024])
def test_launches_fit_the_shared_memory_of_any_card(room: int):
    for name, weight in weights().items():
        layout = Layout(*cuda.pack(weight).how)
        for pieces, tiles in itertools.product((1, 32, 224), (40, 700, 900)):
            how, card = replace(layout, pieces=pieces, tiles=tiles), Card(132, room, int(room > 200 * 1024))
            if not cuda._fits(how, room):
                assert room == 64 * 1024, name  # `pack` leaves it to torch there
                continue
            most = cuda.width(how, card)
            assert most == cuda.WIDE or room < 200 * 1024
            for B in range(1, most + 1):
                which = cuda.narrow_launch if B <= cuda.NARROW else cuda.wide_launch
                launch = which(how, B, False, cuda.knobs(how, B, card), room)
                assert launch.shared <= room and launch.knobs.warps >= 4, (name, pieces, B)
                if B <= cuda.NARROW:
                    k = launch.knobs
                    assert k.warps % k.team == 0 and k.warps // k.team < 16, "whole teams, a named barrier each"
                    assert not layout.sparse or -(-pieces // k.team) <= cuda.REACH, (
                        "a warp can tell its outliers' inputs apart"
                    )


@pytest.mark.parametrize("room", [64 * 1024, 99 * 1024, 227 * 1024])
def test_a_decoding_launch_fits_the_shared_memory_of_any_card(room: int):
    whole = Layout(0, 8, 4096, 256, 32, scale=1, groups=8, zeros=1, sparse=1)  # the longest record of a grid
    books = Layout(1, 8, 4096, 256, 32, scale=1, groups=8, sparse=1)  # and of additive words, with the largest table
    for layout in (whole, books, replace(books, bits=4)):
        if cuda._table(layout, 0)[1] <= room - cuda.LEAST:  # else `pack` leaves it to torch
            assert cuda.dense_launch(layout, False, room).shared <= room


def test_inputs_that_lie_askew_are_copied():
    row = torch.randn(257).half()
    assert cuda._aligned(row[1:]).data_ptr() % 16 == 0 and torch.equal(cuda._aligned(row[1:]), row[1:])
    assert cuda._aligned(row[:256]).data_ptr() == row.data_ptr(), "what lies well stays there"


def test_what_the_kernels_would_misread_is_refused():
    packed = cuda.pack(filled(QuantizedWeight((32, 128), Grid(32, 128, 4), Real(32, 1))))
    x, bias = torch.ones(1, 128).half(), torch.ones(32)
    for wrong in (bias, bias.half()[1:]):
        with pytest.raises(CompressError, match="the bias is"):
            cuda.product(x, packed.parts, packed.how, wrong, False)
    with pytest.raises(CompressError, match="not torch.float32"):
        cuda.decoded(packed.parts, packed.how, torch.float32)


class Compiler:
    """NVRTC that counts its work."""

    def __init__(self) -> None:
        self.programs = 0

    def nvrtcVersion(self, major, minor) -> int:
        major._obj.value, minor._obj.value = 13, 0
        return 0

    def nvrtcCreateProgram(self, *_) -> int:
        self.programs += 1
        return 0

    def nvrtcCompileProgram(self, *_) -> int:
        return 0

    def nvrtcGetCUBINSize(self, program, size) -> int:
        size._obj.value = 4
        return 0

    def nvrtcGetCUBIN(self, program, image) -> int:
        image.raw = b"\x7fELF"
        return 0

    def nvrtcDestroyProgram(self, *_) -> int:
        return 0


def test_machine_code_is_kept_and_damage_is_compiled_again(tmp_path: Path):
    compiler = Compiler()
    for _ in range(2):
        assert nvrtc.cached(b"source", (9, 0), compiler, ("-DA=1",), tmp_path)[1:4] == b"ELF"
    assert compiler.programs == 1
    nvrtc.cached(b"source", (9, 0), compiler, ("-DA=2",), tmp_path)
    nvrtc.cached(b"source", (8, 0), compiler, ("-DA=1",), tmp_path)
    nvrtc.cached(b"source ", (9, 0), compiler, ("-DA=1",), tmp_path)
    assert compiler.programs == 4
    files = sorted(tmp_path.iterdir())
    assert len(files) == 4 and all(f.suffix == ".cubin" for f in files)
    for count, damaged in enumerate((b"", files[0].read_bytes()[:-1], b"\0" * 32 + b"\x7fELF"), 5):
        for file in files:
            file.write_bytes(damaged)
        nvrtc.cached(b"source", (9, 0), compiler, ("-DA=1",), tmp_path)
        assert compiler.programs == count
    nvrtc.cached(b"source", (9, 0), compiler, (), tmp_path / files[0].name / "no folder")  # costs only time


def test_machine_code_lies_in_panzas_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PANZA_HOME", str(tmp_path))
    assert nvrtc.cache() == tmp_path / "kernels"
    assert os.environ["PANZA_HOME"] == str(tmp_path)


# --- on a GPU ---


def relative(y: Tensor, exact: Tensor) -> float:
    return ((y.double() - exact).norm() / exact.norm()).item()


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_a_product_errs_at_most_twice_as_much_as_a_decoded_one(name: str, dtype: torch.dtype):
    weight = weights()[name].cuda().requires_grad_(False)
    N, D = weight.shape
    bias = torch.randn(N, device="cuda").to(dtype)
    packed = cuda.pack(weight)
    exact_weight = weight.dense().double()
    for B in (1, 2, 7, 8, 9, 16, 17, 33, 64, 65, 128, 137):
        x = torch.randn(B, D, device="cuda").to(dtype)
        exact = x.double() @ exact_weight.T + bias.double()
        plain = F.linear(x, weight.dense().to(dtype), bias)
        made = cuda.linear(packed, x, bias)
        assert made.dtype == dtype and made.shape == (B, N)
        assert relative(made, exact) <= 2 * relative(plain, exact), B
        assert torch.equal(made, cuda.linear(packed, x, bias)), "the same twice"


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_one_token_looks_up_products_of_two_books(dtype: torch.dtype):
    weight = (
        filled(QuantizedWeight((2201, 4104), Additive(2201, 4104, 2, 8, 8), Real(2201, 1))).cuda().requires_grad_(False)
    )
    packed = cuda.pack(weight)
    card = cuda._card(0)
    assert cuda.has_dots(Layout(*packed.how), 1, card) or not card.wgmma
    x, bias = torch.randn(1, 4104, device="cuda").to(dtype), torch.randn(2201, device="cuda").to(dtype)
    exact = x.double() @ weight.dense().double().T + bias.double()
    mine = cuda.linear(packed, x, bias)
    assert relative(mine, exact) <= 2 * relative(F.linear(x, weight.dense().to(dtype), bias), exact)
    assert torch.equal(mine, cuda.linear(packed, x, bias))


@needs_gpu
@pytest.mark.parametrize("name", ["spqr", "trellis 2 7", "additive 2x8", "gptq", "rotated grid", "low rank"])
def test_gradients_of_inputs_are_those_of_the_definition(name: str):
    weight = weights()[name].cuda().requires_grad_(False)
    packed, dense = cuda.pack(weight), weight.dense().double()
    for B in (1, 5, 40, 200):
        x = torch.randn(B, weight.shape[1], device="cuda").half().requires_grad_()
        g = torch.randn(B, weight.shape[0], device="cuda").half()
        cuda.linear(packed, x).backward(g)
        plain = (g @ weight.dense().half()).double()
        assert relative(x.grad, g.double() @ dense) <= 2 * relative(plain, g.double() @ dense) + 2e-4


@needs_gpu
def test_a_layer_on_a_gpu_multiplies_codes_and_follows_their_changes():
    weight = weights()["grid 3 g128"]
    layer = QuantizedLinear(weight, torch.randn(weight.shape[0])).cuda().requires_grad_(False)
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.randn(2, 3, weight.shape[1], device="cuda").to(dtype)
        assert layer.multiplies_codes(x) and not layer.multiplies_codes(x.float())
        for _ in range(2):
            exact = F.linear(x.double(), weight.dense().double(), layer.bias.double())
            assert relative(layer(x), exact) < (2e-2 if dtype == torch.bfloat16 else 1e-3)
            weight.decode.codes.random_(0, 256)
    weight.requires_grad_(True)
    assert not layer.multiplies_codes(x), "a parameter's gradient is the definition's"


@needs_gpu
@pytest.mark.parametrize("name", ["spqr", "trellis 2 7", "additive 2x8", "gptq"])
def test_graphs_and_compiled_models_run_the_kernels(name: str):
    weight = weights()[name]
    layer = QuantizedLinear(weight).cuda().requires_grad_(False)
    compiled = torch.compile(layer, fullgraph=True)
    for B in (1, 32):
        x = torch.randn(B, weight.shape[1], device="cuda").half()
        y = layer(x)
        assert torch.equal(compiled(x), y)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            later = layer(x)
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert torch.equal(later, layer(x))


@needs_gpu
@pytest.mark.parametrize("name", ["grid 3 g128", "trellis 2 7", "additive 2x8", "spqr"])
def test_a_launch_waits_for_what_the_one_before_it_writes(name: str):
    """Launches overlap on Hopper: a chain of them gives what it gives with a wait after each. They queue up behind a sleep,
    as the host is too slow for them to meet by themselves."""
    weight = weights()[name].cuda()
    packed, N = cuda.pack(weight), weight.shape[0]
    back = cuda.pack(
        filled(QuantizedWeight((weight.shape[1], N), Grid(weight.shape[1], N, 4), Real(weight.shape[1], 1))).cuda()
    )

    def chain(x: Tensor, wait: bool) -> Tensor:
        torch.cuda._sleep(100_000_000)  # cycles, some 50 ms
        for _ in range(40):
            for step in (packed, back):
                x = cuda.linear(step, x)
                x = x / x.abs().amax(1, keepdim=True)  # a kernel that does not overlap, at times between
                if wait:
                    torch.cuda.synchronize()
            x = cuda.linear(back, cuda.linear(packed, x)).clamp(-4, 4)
        return x

    for B in (1, 8, 40):
        x = torch.randn(B, weight.shape[1], device="cuda").half()
        expected = chain(x, True)  # the kernels are compiled, too
        assert torch.equal(chain(x, False), expected)


@needs_gpu
def test_products_that_follow_one_another_wait_for_their_inputs():
    """As above, with no other kernel between them: its end would hide a launch that does not wait."""
    S, packed = 384, []
    for decode in (Grid(S, S, 3), Trellis(S, S, 2, 7), Additive(S, S, 2, 8, 8)):
        weight = filled(QuantizedWeight((S, S), decode, Real(S, 1)))
        weight.scale.values.data *= S**0.5 / weight.dense().norm()  # so that products are of the size of inputs
        packed.append(cuda.pack(weight.cuda()))

    def chain(x: Tensor, wait: bool) -> Tensor:
        torch.cuda._sleep(100_000_000)
        for _ in range(60):
            for one in packed:
                x = cuda.linear(one, x)
                if wait:
                    torch.cuda.synchronize()
            x = x / x.abs().amax(1, keepdim=True)
        return x

    for B in (1, 8, 16, 64):
        x = torch.randn(B, S, device="cuda").half()
        expected = chain(x, True)
        assert expected.isfinite().all() and torch.equal(chain(x, False), expected)


@needs_gpu
def test_inputs_may_begin_anywhere():
    weight = filled(QuantizedWeight((48, 256), Grid(48, 256, 4), Real(48, 1))).cuda()
    packed, row = cuda.pack(weight), torch.randn(70 * 256 + 1, device="cuda").half()
    for B in (1, 8, 16, 70):
        askew = row[1 : 1 + B * 256].view(B, 256)
        assert torch.equal(cuda.linear(packed, askew), cuda.linear(packed, askew.clone()))


@needs_gpu
def test_a_graph_captured_before_a_layer_is_packed_is_right():
    weight = weights()["grid 3 g128"]
    layer = QuantizedLinear(weight).cuda().requires_grad_(False)
    x = torch.randn(2, weight.shape[1], device="cuda").half()
    F.linear(x, weight.dense().half())  # cuBLAS is there, and the kernels
    assert cuda.usable(x.device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        later = layer(x)
    assert layer._packed.packed is None
    x.normal_()
    graph.replay()
    exact = x.double() @ weight.dense().double().T
    assert relative(later, exact) < 1e-3 and relative(layer(x), exact) < 1e-3


@needs_gpu
def test_a_layer_away_from_its_inputs_is_left_to_torch():
    weight = weights()["grid 3 g128"]
    layer = QuantizedLinear(weight).requires_grad_(False)
    x = torch.randn(2, weight.shape[1], device="cuda").half()
    assert relative(layer(x), x.double() @ weight.dense().double().T.cuda()) < 1e-3


@needs_gpu
def test_operators_keep_torchs_contract():
    weight = weights()["spqr"].cuda()
    packed = cuda.pack(weight)
    x = torch.randn(3, 1152, device="cuda").half().requires_grad_()
    torch.library.opcheck(
        cuda.product, (x, packed.parts, packed.how, None, False), test_utils=("test_schema", "test_faketensor")
    )
    torch.library.opcheck(
        cuda.decoded, (packed.parts, packed.how, torch.float16), test_utils=("test_schema", "test_faketensor")
    )


@needs_gpu
def test_what_does_not_fit_is_refused_before_a_launch():
    packed = cuda.pack(weights()["spqr"].cuda())
    x = torch.randn(3, 1152, device="cuda").half()
    for wrong in (x.float(), x[:, :1060], x.cpu()):
        with pytest.raises((CompressError, NotImplementedError)):
            cuda.product(wrong, packed.parts, packed.how, None, False)
    with pytest.raises(CompressError, match="1060 inputs"):
        cuda.linear(packed, x)
    with pytest.raises(CompressError, match="pieces of a weight"):
        cuda.product(x, [packed.parts[0][1:], *packed.parts[1:]], packed.how, None, False)
