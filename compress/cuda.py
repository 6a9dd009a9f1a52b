"""Products with compressed weights on an NVIDIA GPU, by kernels compiled at first use. Knows weights; knows no model, no file.

`pack` lays a weight out in the order in which the tensor cores take it (kernels/cuda/product.cu); `linear` multiplies with
it: up to 8 tokens at once, up to 128 in passes of at most 64, more through the decoded weight and cuBLAS, as gradients
of the inputs are. The definition is `compress.weight.QuantizedWeight.dense` and a product with it.
"""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress import nvrtc, ops
from compress.decode import Additive, Grid, Trellis
from compress.errors import CompressError
from compress.tables import TwoLevel
from compress.weight import QuantizedWeight, Sparse

TILE, PIECE = 16, 128  # outputs and inputs whose codes lie together
SLICE = 4  # pieces whose products with both books `dots` keeps
NARROW, WIDE, MOST = 8, 64, 128  # tokens: of one pass of either kernel; above MOST the weight is decoded
KINDS = ("grid", "additive", "trellis")
LONGEST = 8192  # Hadamard's block that fits into shared memory
SMALLEST, WITH_BF16 = (7, 5), (8, 0)  # compute capability: the tensor cores' m16n8k8, and of bf16
HALVES = (torch.float16, torch.bfloat16)
LEAST = 42 * 1024  # bytes of shared memory for codes, inputs and sums, beside a table
AT_ONCE = 1 << 24  # weights whose codes lie unpacked at a time, at about 20 bytes each, while one is packed
HELD = 4  # pieces whose inputs a warp of `narrow` may keep in registers
COPIES = 128 * 1024  # bytes of shared memory for copies of a table, at most
BINS = 2176  # bytes of shared memory in which a warp of `narrow` multiplies a tile's outliers; of 2 tokens or more twice that
BEHIND, REACH = 32, 32  # entries that it may read behind the last outlier; pieces whose outliers it can tell apart
TINY = 24  # of fp16 the code 1 is 2^-24: see `scales` of product.cu


@dataclass(frozen=True)
class Layout:
    """What the kernels must know of a packed weight beside its tensors. As ints (`how`) it passes through torch's operators."""

    kind: int  # in KINDS
    bits: int  # of a grid, a trellis' step; an additive weight's books of 8 bits
    N: int  # outputs of the product
    tiles: int
    pieces: int
    window: int = 0
    wide: int = 0  # one book of 2^16 words
    center: int = 0  # a grid's zero, if no table has it
    scale: int = 0  # 0: of a row, 1: of parts of a piece, 2: two levels
    groups: int = 1  # parts of a piece that have their own scale
    zeros: int = 0
    sparse: int = 0

    @property
    def record(self) -> int:
        """Bytes of a piece: RECORD of product.cu."""
        scales = (0, self.groups * 32 * (1 + self.zeros), 192)[self.scale]
        return 256 * self.bits + scales + 16 * self.sparse

    @property
    def fine(self) -> bool:
        """Whether a lane holds 16 inputs of 64: FINE of product.cu."""
        return self.groups == 8 and KINDS[self.kind] != "trellis"

    @property
    def spread(self) -> int:
        """Bytes of shared memory for the outliers of a piece: SPREAD of product.cu."""
        line = 288 if KINDS[self.kind] == "trellis" else 272 if self.fine else 320
        return self.sparse * -(-TILE * line // 512) * 512

    @property
    def pad(self) -> int:
        """Bytes behind the records of a tile."""
        return 16 * (KINDS[self.kind] == "trellis")


@dataclass(frozen=True)
class Packed:
    """A weight as the kernels read it. how: its Layout as ints. parts: as PARTS names them, empty where there is none."""

    how: list[int]
    parts: list[Tensor]
    shape: tuple[int, int]
    padded: tuple[int, int]
    in_block: int = 1
    out_block: int = 1
    turns: tuple[Tensor | None, ...] = (None, None, None)  # order, signs of the inputs, signs of the outputs
    low_rank: tuple[Tensor, Tensor] | None = None

    def bytes(self) -> int:
        more = [*self.turns, *(self.low_rank or ())]
        return sum(t.numel() * t.element_size() for t in [*self.parts, *more] if t is not None)


PARTS = ("records", "table", "outliers", "row_scale")


def usable(device: torch.device, dtype: torch.dtype = torch.float16) -> bool:
    """Whether the kernels run there, on such inputs. Says once why they do not on a GPU that torch could use."""
    if device.type != "cuda" or dtype not in HALVES or not _usable(device.index or 0):
        return False
    return dtype == torch.float16 or torch.cuda.get_device_capability(device) >= WITH_BF16


@lru_cache
def _usable(index: int) -> bool:
    try:
        if nvrtc.kernel("hadamard", index, None, ("-DBLOCK=1",), SMALLEST, overlap=True) is not None:
            return True
        why = "there is no NVRTC beside torch, no NVIDIA driver, or the GPU is older than compute capability 7.5"
    except (RuntimeError, OSError, AttributeError) as error:  # no sources there, or another NVRTC than we know
        why = f"they do not compile: {error}"
    warnings.warn(f"compressed products run on plain torch, not on their own kernels: {why}", stacklevel=3)
    return False


# --- the layout ----------------------------------------------------------------------------------------------------


def pack(weight: QuantizedWeight) -> Packed | None:
    """The weight for the kernels, on its device; None for kinds, sizes and scales (with zeros 64 and more) that they do not take."""
    decode, (N, D) = weight.decode, weight.shape
    tiles, pieces = -(-decode.N // TILE), -(-decode.D // PIECE)
    transform = weight.transform
    plain = transform.in_block == transform.out_block == 1 and transform.order is None
    if max(transform.in_block, transform.out_block) > LONGEST or (weight.sparse is not None and not plain):
        return None
    groups = _groups(weight)
    if groups is None:
        return None
    layout = Layout(0, 0, N if transform.out_block == 1 else decode.N, tiles, pieces, groups=groups)
    packer = {Grid: _pack_grid, Additive: _pack_additive, Trellis: _pack_trellis}.get(type(decode))
    coded = packer(decode, layout) if packer else None
    if coded is None:
        return None
    layout, codes, parts = coded
    power = _power(weight)
    if power is None:
        return None
    layout, more = _pack_scales(weight, layout, power)
    if weight.sparse is not None:
        layout = replace(layout, sparse=1)
        where, outliers = _pack_outliers(weight.sparse, layout, power)
        more, parts = {**more, "outliers": where}, {**parts, "outliers": outliers}
    row_scale, tail = more.pop("row_scale", None), parts.pop("tail", None)
    records = torch.cat((codes, *more.values()), 2)  # (tiles, pieces, bytes)
    assert records.shape[2] == layout.record
    records = F.pad(records.flatten(1), (0, layout.pad))
    if tail is not None:
        records[:, -layout.pad] = tail
    parts = dict.fromkeys(PARTS) | parts | {"records": records, "row_scale": row_scale}
    if any(t.numel() * t.element_size() >= 1 << 32 for t in parts.values() if t is not None):
        return None  # the kernels count bytes in 32 bits
    device = decode.codes.device
    if device.type == "cuda" and not _fits(layout, _card(device.index).room):
        return None  # an older card with little shared memory
    none = torch.empty(0, device=device)
    low = weight.low_rank
    packed = Packed(
        list(astuple(layout)), [none if p is None else p.contiguous() for p in parts.values()], (N, D), (decode.N, decode.D),
        transform.in_block, transform.out_block, (transform.order, transform.in_signs, transform.out_signs),
        None if low is None else (low.A.detach(), low.B.detach()),
    )  # fmt: skip
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()  # a launch may read a weight before the kernel ahead of it ends
    return packed


def _lanes(codes: Tensor, layout: Layout) -> Tensor:
    """(n, D, ...) codes of some rows -> (tiles of them, pieces, g, t, j, half, 8, ...): see the head of product.cu."""
    short = [0, 0] * (codes.dim() - 2)
    padded = F.pad(codes, (*short, 0, layout.pieces * PIECE - codes.shape[1], 0, -len(codes) % TILE))
    if layout.fine:
        lanes = padded.reshape(-1, 2, 8, layout.pieces, 2, 4, 2, 8, *codes.shape[2:])
        return lanes.permute(0, 3, 2, 5, 4, 6, 1, 7, *range(8, lanes.dim())).flatten(4, 5)
    lanes = padded.reshape(-1, 2, 8, layout.pieces, 4, 4, 8, *codes.shape[2:])
    return lanes.permute(0, 3, 2, 5, 4, 1, 6, *range(7, lanes.dim()))


def _by_tiles(decode: Grid | Additive, packed: Callable[[Tensor], Tensor]) -> Tensor:
    """(n, bytes) of some rows -> their tiles, `packed`: those of all rows, a few at a time, so that a head of a large vocabulary fits."""
    rows = max(1, AT_ONCE // decode.D // TILE) * TILE
    return torch.cat([packed(part) for part in decode.codes.split(rows)])


def _interleaved(words: Tensor) -> Tensor:
    """(tiles, pieces, 32 lanes, words) int32 -> (tiles, pieces, bytes): 16 bytes a lane at a time, then the 8 that may be left."""
    most = words.shape[3] // 4 * 4
    fours = words[..., :most].unflatten(-1, (-1, 4)).transpose(2, 3).flatten(2)  # (tiles, pieces, fours, lanes, 4)
    return torch.cat((fours, words[..., most:].flatten(2)), 2).contiguous().view(torch.uint8)


def _words(parts: Tensor) -> Tensor:
    """(..., 4 k) bytes -> (..., k) int32."""
    return parts.to(torch.uint8).contiguous().view(torch.int32)


Coded = tuple[Layout, Tensor, dict[str, Tensor]]  # a layout, codes (tiles, pieces, bytes), other parts


def _pack_grid(decode: Grid, layout: Layout) -> Coded | None:
    bits = decode.bits
    if bits not in (2, 3, 4, 8):
        return None
    zero = 2 ** (bits - 1) if decode.zero is None else 0
    made = replace(layout, kind=0, bits=bits, center=zero, zeros=int(decode.zero is not None))
    words = _by_tiles(decode, lambda codes: _grid_words(ops.unpack(codes, decode.D, bits), bits, layout))
    return made, words, {}


def _grid_words(codes: Tensor, bits: int, layout: Layout) -> Tensor:
    lanes = _lanes(codes, layout).unflatten(-1, (2, 2, 2))  # (..., j, half, m, e, two)
    pairs = lanes.permute(0, 1, 2, 3, 4, 6, 7, 5, 8).reshape(-1, layout.pieces, 32, 8, 4, 2)  # 2 j + m, 2 e + half

    def joined(codes: Tensor, bits: int) -> Tensor:
        """(..., count, 4, 2) -> (..., 4, 2): each behind the one before it, from bit 0 on."""
        at = torch.arange(codes.shape[3], device=codes.device, dtype=torch.int32) * bits
        return (codes << at[:, None, None]).sum(3, dtype=torch.int32)

    if bits == 3:
        first = joined(pairs[..., :5, :, :], 3) | pairs[..., 7, :, :] >> 2 << 15
        third = joined(pairs[..., [6, 5], :, :], 3) | (pairs[..., 7, :, :] & 3) << 6  # a byte of each
        halves = torch.cat((first, third[..., ::2, :] | third[..., 1::2, :] << 8), 3)  # (..., 6, 2)
    else:
        halves = torch.cat([joined(part, bits) for part in pairs.split(16 // bits, 3)], 3)
    return _interleaved(halves[..., 0] | halves[..., 1] << 16)


def _pack_additive(decode: Additive, layout: Layout) -> Coded | None:
    wide = decode.bits == 16 and decode.books == 1
    if decode.group != 8 or not (wide or (decode.bits == 8 and decode.books <= 8)):
        return None
    count = 2 if wide else decode.books  # bytes of 8 inputs: a code of 16 bits is two, the low one first

    def words(codes: Tensor) -> Tensor:
        parts = codes.reshape(len(codes), -1, count)  # (n, D / 8, bytes)
        lanes = _lanes(parts.repeat_interleave(8, 1), layout)[..., 0, :]  # (tiles, pieces, g, t, j, half, bytes)
        return _interleaved(_words(lanes.reshape(-1, layout.pieces, 32, 8 * count)))

    made = replace(layout, kind=1, bits=count, wide=int(wide))
    return made, _by_tiles(decode, words), {"table": decode.words().detach().half()}


def _pack_trellis(decode: Trellis, layout: Layout) -> Coded | None:
    step, window = decode.step, decode.window
    if step not in (2, 3, 4) or not step <= window <= min(step + 8, 12 - step):
        return None
    whole = 32 * step * (decode.D // TILE)  # bytes of whole tiles of 16 inputs
    codes = F.pad(decode.codes, (0, 32 * step * layout.pieces * 8 + 1 - decode.codes.shape[1]))
    assert whole <= decode.codes.shape[1], "a chain has all of its bits"
    parts = codes[:, :-1].reshape(layout.tiles, layout.pieces, 8, 4, 8, step)  # (..., tile of inputs, t, g, bytes)
    lanes = parts.permute(0, 1, 4, 3, 2, 5)  # (..., g, t, tile of inputs, bytes)
    if step == 3:  # the third bytes go behind
        lanes = torch.cat((lanes[..., :2].flatten(4), lanes[..., 2]), 4)
    words = _words(lanes.reshape(layout.tiles, layout.pieces, 32, 8 * step))
    after = 32 * step * 8 * layout.pieces  # of all pieces: what the chain has behind them
    tail = codes[:, after] if codes.shape[1] > after else codes[:, 0] * 0
    made = replace(layout, kind=2, bits=step, window=window)
    return made, _interleaved(words), {"tail": tail, "table": decode.lut.detach().half()}


def _tables(weight: QuantizedWeight) -> list[Tensor]:
    """Values of the scale and zero tables that there are, (N', G) each."""
    tables = weight.scale, getattr(weight.decode, "zero", None)
    return [table().detach() for table in tables if table is not None]


def _groups(weight: QuantizedWeight) -> int | None:
    """Parts of a piece that have their own scale or zero; None if they are no parts of equal size, of 16 inputs or more."""
    counts, D = {t.shape[1] for t in _tables(weight)} | {1}, weight.decode.D
    most = max(counts)
    part = PIECE if most == 1 else math.gcd(D // most, PIECE)
    zero = getattr(weight.decode, "zero", None)
    coarse = isinstance(zero, TwoLevel) and zero.groups < most  # no half: its rounding would shift a whole row
    return None if counts - {1, most} or D % most or part < TILE or coarse else PIECE // part


def _fits(layout: Layout, room: int) -> bool:
    """Whether a block with so many bytes of shared memory can hold what it must."""
    if _table(layout, 0)[1] > room - LEAST:
        return False
    k = narrow_launch(layout, NARROW, False, Knobs(16, 2, 16), room).knobs
    return not layout.sparse or -(-layout.pieces // k.team) <= REACH


def _power(weight: QuantizedWeight) -> Tensor | None:
    """(N',) e: the kernels take a row times 2^-e, so that 2^TINY scales are numbers of fp16. None if they take it in no way."""
    decode, scale = weight.decode, weight.scale
    none = torch.zeros(decode.N, dtype=torch.int32, device=decode.codes.device)
    if not isinstance(decode, Grid) or decode.bits == 8 or decode.zero is None or scale is None:
        return none

    def above(t: Tensor) -> Tensor:
        """e, if |t| is below 2^e; of zeros far below."""
        return torch.where(t == 0, -99, torch.frexp(t.detach().float().abs()).exponent)

    if not _two_levels(weight):
        return none if above(scale()).max() <= 15 - 9 else None
    block = torch.arange(scale.N, device=none.device) // scale.rows  # of rows that share their scales' scales
    least = torch.maximum(above(scale()).amax(1), above(scale.scale).amax(1)[block]) - 15 + TINY
    if weight.sparse is not None:
        least = least.scatter_reduce(0, _rows(weight.sparse), above(weight.sparse.values) - 15, "amax")
    power = least.new_full((len(scale.scale),), -14).scatter_reduce(0, block, least, "amax")
    return power[block] if power.max() < 16 else None


def _rows(sparse: Sparse) -> Tensor:
    """Of each outlier."""
    return torch.arange(sparse.N, device=sparse.starts.device).repeat_interleave(sparse.starts.diff())


def _pack_scales(weight: QuantizedWeight, layout: Layout, power: Tensor) -> tuple[Layout, dict[str, Tensor]]:
    """Scales and zeros: of rows, of groups, or of two levels as SpQR has them."""
    tables, scale, zero = _tables(weight), weight.scale, getattr(weight.decode, "zero", None)
    if zero is None and weight.sparse is None and (scale is None or tables[0].shape[1] == 1):
        return layout, {} if scale is None else {"row_scale": tables[0][:, 0].half()}
    if _two_levels(weight):
        return _pack_two_levels(scale, zero, layout, power)
    if scale is None:  # outliers are added to weights with all of their scales
        tables = [torch.ones(weight.decode.N, 1, device=weight.decode.codes.device), *tables]
    chained = KINDS[layout.kind] == "trellis"
    order = [2 * g + s if chained else g + 8 * s for g in range(8) for s in range(2)]
    groups = max(table.shape[1] for table in tables)
    at = torch.arange(layout.pieces * layout.groups, device=tables[0].device) * (PIECE // layout.groups)  # inputs
    made = []
    for table in tables:
        table = table.expand(-1, groups)[:, (at // (weight.decode.D // groups)).clamp(max=groups - 1)]
        table = F.pad(table, (0, 0, 0, layout.tiles * TILE - len(table))).half()
        made.append(table.view(layout.tiles, TILE, -1)[:, order].permute(0, 2, 1).unflatten(2, (8, 2)))
    entries = torch.stack(made, -2)  # (tiles, groups, g, [scale, zero], [first, second])
    entries = entries.reshape(layout.tiles, layout.pieces, -1).contiguous().view(torch.uint8)
    return replace(layout, scale=1), {"scales": entries}


def _two_levels(weight: QuantizedWeight) -> bool:
    tables = weight.scale, getattr(weight.decode, "zero", None)
    return (
        all(isinstance(t, TwoLevel) and t.bits <= 4 and weight.decode.D == TILE * t.groups for t in tables)
        and tables[0].rows == tables[1].rows
        and (tables[0].rows % TILE == 0 or tables[0].rows >= weight.decode.N)
    )


def _pack_two_levels(
    scale: TwoLevel, zero: TwoLevel, layout: Layout, power: Tensor
) -> tuple[Layout, dict[str, Tensor]]:
    """A byte of both codes for each output and 16 inputs; halves (scale's scale, its zero, zero's scale, its zero), the first times
    2^(TINY - power) for codes below 8 bits; a scale of rows that takes 2^-power back."""
    both = ops.unpack(scale.codes, scale.groups, scale.bits) | ops.unpack(zero.codes, zero.groups, zero.bits) << 4
    both = F.pad(both, (0, layout.pieces * 8 - scale.groups, 0, layout.tiles * TILE - scale.N)).to(torch.uint8)
    lanes = both.view(layout.tiles, 2, 8, layout.pieces, 2, 4).permute(
        0, 3, 2, 5, 4, 1
    )  # (..., g, t, half of 128, half)
    larger = scale.scale.float() * (2.0 ** (TINY - power[:: scale.rows, None]) if layout.bits < 8 else 1)
    levels = torch.stack((larger, scale.zero, zero.scale, zero.zero), -1).detach().half()  # (blocks, G, 4)
    levels = F.pad(levels, (0, 0, 0, layout.pieces * 8 - scale.groups))
    block = (torch.arange(layout.tiles, device=levels.device) * TILE // scale.rows).clamp(max=len(levels) - 1)
    levels = levels[block].reshape(layout.tiles, layout.pieces, -1).contiguous().view(torch.uint8)
    made = replace(layout, scale=2, zeros=1)
    rows = {"row_scale": (2.0**power).half()} if layout.bits < 8 else {}
    return made, {"scales": lanes.reshape(layout.tiles, layout.pieces, -1), "levels": levels, **rows}


def _pack_outliers(sparse: Sparse, layout: Layout, power: Tensor) -> tuple[Tensor, Tensor]:
    """Where each piece's outliers begin and end, (tiles, pieces, 16) bytes; and they, times 2^-power: value << 16 | output of the
    tile << 12 | input modulo 4096, in the order in which lanes hold inputs. Zeros follow, which a kernel may read too."""
    sparse.check()
    row, column = _rows(sparse), sparse.columns.long()
    piece, order = (row // TILE * layout.pieces + column // PIECE).sort(stable=True)
    ends = torch.bincount(piece, minlength=layout.tiles * layout.pieces).cumsum(0).int()
    where = F.pad(torch.stack((F.pad(ends[:-1], (1, 0)), ends), -1), (0, 2))
    if KINDS[layout.kind] == "trellis":  # of 32 a lane holds four of each 16
        column = column - column % 32 + column % 16 // 4 * 8 + column // 16 % 2 * 4 + column % 4
    value = (sparse.values.detach().float() * 2.0 ** -power[row]).half().view(torch.int16).int() << 16
    entries = value | (row % TILE << 12 | column % 4096).int()
    return where.view(layout.tiles, layout.pieces, 4).view(torch.uint8), F.pad(entries[order], (0, BEHIND))


# --- launches ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Knobs:
    """Sizes of a launch: see product.cu. `knobs` has what measured best."""

    warps: int
    depth: int  # pieces in flight, at most; in `narrow` runs of them
    team: int = 1  # warps that share a tile's pieces, in `narrow`
    tiles: int = 1  # of a warp at once
    inputs: int = 1  # `narrow` keeps x in shared memory, if it fits
    most: int = COPIES  # bytes for copies of the table
    wgmma: int = 0
    run: int = 1  # pieces that a warp of `narrow` takes together, at most
    tokens: int = 0  # of `narrow`, with outliers
    held: int = (
        0  # 1: warps of `narrow` have their pieces' inputs in registers, if they fit; of a launch how many pieces
    )
    keep: int = 1  # steps of a team whose sums wait to be added, at most


@lru_cache(maxsize=4096)
def knobs(layout: Layout, B: int, card: Card) -> Knobs:
    """For so many tokens."""
    kind = KINDS[layout.kind]
    if B <= NARROW:
        return _narrow_knobs(layout, B, -(-layout.tiles // card.cores))
    if B > 16 or layout.sparse:
        return Knobs(16, 4, tiles=1, wgmma=card.wgmma)
    return {"grid": Knobs(16, 3, tiles=1), "additive": Knobs(8, 4, tiles=3), "trellis": Knobs(12, 4, tiles=2)}[kind]


def _narrow_knobs(layout: Layout, B: int, turns: int) -> Knobs:
    """For up to NARROW tokens, where a multiprocessor has `turns` tiles."""
    kind, pieces = KINDS[layout.kind], layout.pieces
    table = 1 << layout.window + layout.bits if kind == "trellis" else 0  # entries; more than 512 leave little room
    spread = B > 2 and 0 < table <= 512 and pieces <= 32 or layout.sparse and (B == 1 or B <= 4 and turns == 7)
    if spread and turns > 4:  # many teams of four warps, of which few idle in the last turn
        teams = min((7, 6, 5, 4), key=lambda n: -turns % n)
        return Knobs(4 * teams, 2, 4, run=1 if layout.sparse and turns <= teams else 2)
    team = 8 if pieces <= 32 and (kind != "grid" or turns <= 2) else 16
    each = -(-pieces // team)
    few = B <= 4 or turns > 4
    if few and not layout.sparse and table <= 1024 and each <= HELD and each * team <= 1.25 * pieces:
        tiles = 2 if kind == "trellis" and team == 16 and B <= 4 else 1
        return Knobs(8 if team == 8 and turns <= 2 else 16, 2, team, tiles, held=1, keep=16 if team == 16 else 1)
    if B > 4 and pieces > 64 and turns <= 2 and not layout.sparse:  # too many inputs for shared memory
        return Knobs(16, 2, 8, 2, run=2)
    one = layout.sparse or table > 1024 or (B > 2 and kind != "grid" and turns <= 8)
    tiles = 1 if one or turns <= 4 else 2
    teams = min(8 if one else 4, 1 << (-(-turns // tiles) - 1).bit_length())
    return Knobs(16, 2, 16 // teams, tiles, run=4 if tiles == 2 and turns > 8 else 2)


@lru_cache(maxsize=4096)
def width(layout: Layout, card: Card) -> int:
    """Tokens of a pass of `wide`: as many as its shared memory takes with four warps."""
    fits = lambda B: wide_launch(layout, B, False, knobs(layout, B, card), card.room).knobs.warps >= 4  # noqa: E731
    return next((B for B in (WIDE, WIDE // 2) if fits(B)), WIDE // 4)


@dataclass(frozen=True)
class Card:
    """A GPU: multiprocessors, bytes of shared memory that a block may have, Hopper's products of warpgroups."""

    cores: int
    room: int
    wgmma: int


@lru_cache
def _card(index: int) -> Card:
    p = torch.cuda.get_device_properties(index)
    room = getattr(p, "shared_memory_per_block_optin", 64 * 1024)
    return Card(p.multi_processor_count, room, int((p.major, p.minor) == (9, 0)))


def _table(layout: Layout, room: int) -> tuple[int, int]:
    """(copies of the table, bytes of all of them) within so many bytes."""
    kind = KINDS[layout.kind]
    if kind == "grid" or layout.wide:
        return 1, 0
    one, most = (layout.bits * 4096, 8) if kind == "additive" else (4 << layout.window + layout.bits, 32)
    while most > 1 and one * most > room:
        most //= 2
    return most, one * most


def _flags(layout: Layout, part: int, copies: int, bf16: bool, fan: int, k: Knobs) -> tuple[str, ...]:
    numbers = {
        "KIND": layout.kind, "BITS": layout.bits, "WINDOW": layout.window, "WIDE": layout.wide, "CENTER": layout.center,
        "SCALE": layout.scale, "GROUPS": layout.groups, "ZEROS": layout.zeros, "SPARSE": layout.sparse, "REP": copies,
        "BF16": int(bf16), "NT": fan, "R": k.tiles, "WARPS": k.warps, "TEAM": k.team, "DEPTH": k.depth, "INPUTS": k.inputs, "RUN": k.run,
        "WGMMA": k.wgmma, "PART": part, "TOKENS": k.tokens, "HELD": k.held, "KEEP": k.keep,
    }  # fmt: skip
    return tuple(f"-D{name}={number}" for name, number in numbers.items())


def _some(tensor: Tensor | None) -> Tensor | None:
    return tensor if tensor is not None and tensor.numel() else None


def _weight(layout: Layout, parts: list[Tensor]) -> bytes:
    """product.cu's struct Weight."""
    pointers = (t.data_ptr() if t.numel() else 0 for t in parts[:3])
    return struct.pack("3Q2i", *pointers, layout.tiles, layout.pieces)


@dataclass(frozen=True)
class Launch:
    """How to start a kernel: flags to compile it, bytes of shared memory, eights of tokens, the knobs as they fit the card."""

    flags: tuple[str, ...]
    shared: int
    fan: int
    knobs: Knobs


@lru_cache(maxsize=4096)
def narrow_launch(layout: Layout, B: int, bf16: bool, k: Knobs, room: int) -> Launch:
    """Of `narrow` for B tokens, on a card whose blocks may have `room` bytes of shared memory."""
    kept, each = B * (layout.pieces * PIECE + 32) * 2, -(-layout.pieces // k.team)
    k = replace(k, tokens=layout.sparse << (B - 1).bit_length())

    def run(k: Knobs) -> int:
        """Bytes of the runs in flight, one of each warp, and of its barrier."""
        return k.warps * (k.tiles * (k.run * layout.record + layout.pad) + 8)

    def least(k: Knobs) -> int:
        """Bytes of sums, scales of their rows, bins and two runs."""
        sums = k.keep * (k.warps * B * 20 * 4 + k.warps // k.team * TILE * 4)
        return k.tiles * (sums + k.warps * BINS * min(k.tokens, 2)) + 2 * run(k)

    while layout.sparse and -(-layout.pieces // k.team) > REACH and k.team < k.warps:
        k = replace(k, team=k.team * 2, warps=k.warps // (k.team * 2) * k.team * 2)
    one, full = _table(layout, 0)[1], _table(layout, k.most)[1]
    held = replace(k, held=each, run=each, inputs=0)
    if k.held and each <= HELD and not layout.sparse and least(replace(held, keep=1, tiles=1)) + one <= room:
        k = held if least(replace(held, keep=1)) + full <= room else replace(held, tiles=1)
        while least(k) + full > room and k.keep > 1:
            k = replace(k, keep=k.keep // 2)
    else:
        k = replace(k, held=0, keep=1)
        want = full + kept if k.inputs and least(replace(k, run=1)) + full + kept <= room else full
        while least(k) + want > room and k.run > 1:
            k = replace(k, run=k.run // 2)
    while least(k) + one > room:
        half, team = k.warps // 2, min(k.team, k.warps // 2)
        k = replace(k, tiles=1) if k.tiles > 1 else replace(k, warps=half // team * team, team=team)
    left = room - least(k)
    copies, table = _table(layout, min(k.most, left))
    if k.inputs and table + kept > left:  # half the copies cost less than inputs from global memory
        half = _table(layout, table // 2)
        if half[1] + kept <= left and half[0] < copies:
            copies, table = half
        else:
            k = replace(k, inputs=0)
    more = min(k.depth - 2, (left - table - k.inputs * kept) // run(k))
    shared = least(k) + table + k.inputs * kept + more * run(k)
    k = replace(k, depth=2 + more)
    return Launch(_flags(layout, 0, copies, bf16, 1, k), shared - 8 * k.warps * k.depth, 1, k)


@lru_cache(maxsize=4096)
def wide_launch(layout: Layout, B: int, bf16: bool, k: Knobs, room: int) -> Launch:
    """Of `wide` and `finish`."""
    room -= 128  # barriers
    fan, least = next(n for n in (2, 4, 8) if n * 8 >= B), 2 + max(layout.sparse, k.wgmma)
    skew = 16 if KINDS[layout.kind] == "trellis" else 32
    stage = 16 * (fan * 128 + 16) if k.wgmma else 2 * (PIECE + skew) * fan * 8

    def sizes(k: Knobs) -> tuple[int, int]:
        """Bytes of a piece in flight, and of spread outliers."""
        return stage + k.warps * k.tiles * (layout.record + layout.pad), k.warps * k.tiles * layout.spread

    while sum(sizes(k)) + (least - 1) * sizes(k)[0] + _table(layout, 0)[1] > room and k.warps > 1:
        k = replace(k, tiles=k.tiles - 1) if k.tiles > 1 else replace(k, warps=k.warps // 2)
    piece, spread = sizes(k)
    copies, table = _table(layout, min(k.most, room - spread - least * piece))
    k = replace(k, depth=min(max(k.depth, least), (room - spread - table) // piece))
    return Launch(_flags(layout, 1, copies, bf16, fan, k), table + spread + k.depth * piece, fan, k)


@lru_cache(maxsize=4096)
def dense_launch(layout: Layout, bf16: bool, room: int) -> Launch:
    """Of `dense`."""
    k, warp = Knobs(8, 2), 2 * (layout.record + layout.pad) + layout.spread  # bytes: pieces, spread outliers
    while k.warps * warp + _table(layout, 0)[1] > room and k.warps > 1:
        k = replace(k, warps=k.warps // 2)
    copies, table = _table(layout, min(room - k.warps * warp, 32 * 1024))
    return Launch(_flags(layout, 2, copies, bf16, 1, k), k.warps * warp + table, 1, k)


def dots_launch(layout: Layout, bf16: bool) -> Launch:
    """Of `dots` and `total`."""
    k = Knobs(16, 2)
    return Launch(_flags(layout, 3, 1, bf16, 1, k), 512 * 256 + k.warps * k.depth * (SLICE * layout.record + 8), 1, k)


def _kernel(name: str, device: int, function: str, flags: tuple[str, ...] = ()) -> nvrtc.Launch:
    books = "-DWIDE=1" in flags  # too large for shared memory
    return nvrtc.kernel(name, device, function, flags, overlap=True, l1=books)


def narrow(x: Tensor, parts: list[Tensor], layout: Layout, bias: Tensor | None, y: Tensor, k: Knobs) -> None:
    """y (B, N) of up to NARROW tokens. x: (B, pieces * PIECE)."""
    B, card, device = len(x), _card(x.device.index), x.device.index
    how = narrow_launch(layout, B, x.dtype == torch.bfloat16, k, card.room)
    _kernel("product", device, "narrow", how.flags)(
        min(card.cores, layout.tiles), how.knobs.warps * 32, how.shared, _weight(layout, parts), x, y, _some(parts[3]), bias,
        layout.N, B, int(y.dtype == torch.float32),
    )  # fmt: skip


def has_dots(layout: Layout, B: int, card: Card) -> bool:
    """Whether `dots` takes it: one token, two books, and enough outputs that most multiprocessors are busy."""
    plain = KINDS[layout.kind] == "additive" and layout.bits == 2 and not (layout.wide or layout.scale or layout.sparse)
    slices = -(-layout.pieces // SLICE)
    idle = card.cores % slices if slices <= card.cores else card.cores
    return B == 1 and plain and card.wgmma == 1 and 5 * idle <= card.cores and layout.tiles * slices >= 8 * card.cores


def dots(x: Tensor, parts: list[Tensor], layout: Layout, bias: Tensor | None, y: Tensor) -> None:
    """As `narrow`, of one token by looking up products instead of words: see `has_dots`."""
    card, device, how = _card(x.device.index), x.device.index, dots_launch(layout, x.dtype == torch.bfloat16)
    slices = -(-layout.pieces // SLICE)
    blocks = max(1, min(card.cores // slices, -(-layout.tiles // how.knobs.warps)))
    sums = torch.empty(slices * layout.tiles * TILE, dtype=torch.float32, device=x.device)
    weight = _weight(layout, parts)
    _kernel("product", device, "dots", how.flags)(
        slices * blocks, how.knobs.warps * 32, how.shared, weight, x, sums, blocks
    )
    _kernel("product", device, "total", how.flags)(
        -(-layout.N // 128), 128, 0, sums, y, _some(parts[3]), bias, layout.N, slices, layout.tiles * TILE,
        int(y.dtype == torch.float32),
    )  # fmt: skip


def wide(x: Tensor, parts: list[Tensor], layout: Layout, bias: Tensor | None, y: Tensor, k: Knobs) -> None:
    """As `narrow`, of up to WIDE tokens."""
    B, card, device = len(x), _card(x.device.index), x.device.index
    how = wide_launch(layout, B, x.dtype == torch.bfloat16, k, card.room)
    k, height = how.knobs, how.knobs.warps * how.knobs.tiles
    blocks = -(-layout.tiles // height)
    shares = min(card.cores, blocks * layout.pieces)
    assert blocks * layout.pieces * shares < 1 << 32, "the kernel divides in 32 bits"
    slots = _slots(blocks, layout.pieces, shares)
    sums = torch.empty(blocks * slots * how.fan * 8 * height * TILE, dtype=torch.float32, device=x.device)
    _kernel("product", device, "wide", how.flags)(
        shares, k.warps * 32, how.shared, _weight(layout, parts), x, sums, B, slots
    )
    _kernel("product", device, "finish", how.flags)(
        -(-layout.tiles * 4 * B // 256), 256, 0, sums, y, _some(parts[3]), bias, layout.N, B, int(y.dtype == torch.float32),
        layout.tiles, layout.pieces, shares, slots,
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _slots(blocks: int, pieces: int, shares: int) -> int:
    """The most shares that a block of outputs is cut into: work [i P, (i + 1) P) of `blocks` P, cut in `shares` parts."""
    work = blocks * pieces
    place = [((unit + 1) * shares - 1) // work for i in range(blocks) for unit in (i * pieces, (i + 1) * pieces - 1)]
    return max(last - first + 1 for first, last in zip(place[::2], place[1::2], strict=True))


# --- torch's operators ---------------------------------------------------------------------------------------------


def _layout(how: list[int]) -> Layout:
    return Layout(*how)


def _checked(x: Tensor, parts: list[Tensor], layout: Layout, bias: Tensor | None) -> None:
    if x.dtype not in HALVES or (x.is_cuda and not usable(x.device, x.dtype)):
        raise CompressError(f"the GPU's kernels multiply float16, from Ampere on bfloat16, not {x.dtype} on {x.device}")
    if x.dim() != 2 or x.shape[1] != layout.pieces * PIECE:
        raise CompressError(f"these inputs are {tuple(x.shape)}, the packed weight takes (B, {layout.pieces * PIECE})")
    if bias is not None and (bias.dtype != x.dtype or bias.shape != (layout.N,)):
        raise CompressError(f"the bias is {tuple(bias.shape)} of {bias.dtype}, not {(layout.N,)} of {x.dtype}")
    if parts[0].device != x.device or not x.is_cuda:
        raise CompressError(f"the inputs are on {x.device} and the packed weight is on {parts[0].device}")
    if parts[0].numel() != layout.tiles * (layout.pieces * layout.record + layout.pad):
        raise CompressError(
            f"{parts[0].numel()} bytes are not those of {layout.tiles} by {layout.pieces} pieces of a weight"
        )


def _aligned(x: Tensor) -> Tensor:
    """x where the kernels can read it, 16 bytes at a time; itself, if it lies so."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


@torch.library.custom_op("panza::product", mutates_args=())
def product(x: Tensor, parts: list[Tensor], how: list[int], bias: Tensor | None, full: bool) -> Tensor:
    """(B, pieces * PIECE) -> (B, N): x Ŵᵀ + outliers + bias, in the space of the codes. full: as fp32 (up to MOST tokens the
    sums as they are), else x's dtype. bias: (N,) of x's dtype."""
    layout = _layout(how)
    _checked(x, parts, layout, bias)
    if len(x) > MOST:
        made = F.linear(x, decoded(parts, how, x.dtype), bias)
        return made.float() if full else made
    x, B, bias = _aligned(x), len(x), None if bias is None else bias.contiguous()
    y = torch.empty(B, layout.N, dtype=torch.float32 if full else x.dtype, device=x.device)
    card = _card(x.device.index)
    if B <= NARROW:
        if has_dots(layout, B, card):
            dots(x, parts, layout, bias, y)
        elif B:
            narrow(x, parts, layout, bias, y, knobs(layout, B, card))
        return y
    step = width(layout, card)
    for at in range(0, B, step):
        some = x[at : at + step]
        wide(some, parts, layout, bias, y[at : at + step], knobs(layout, len(some), card))
    return y


@product.register_fake
def _(x: Tensor, parts: list[Tensor], how: list[int], bias: Tensor | None, full: bool) -> Tensor:
    return x.new_empty(len(x), _layout(how).N, dtype=torch.float32 if full else x.dtype)


@torch.library.custom_op("panza::decoded", mutates_args=())
def decoded(parts: list[Tensor], how: list[int], dtype: torch.dtype) -> Tensor:
    """(N, pieces * PIECE) fp16 or bf16: the packed weight in the space of the codes, with its outliers."""
    if dtype not in HALVES:
        raise CompressError(f"the GPU's kernels decode to float16 or bfloat16, not {dtype}")
    layout, codes = _layout(how), parts[0]
    device, card = codes.device.index, _card(codes.device.index)
    plan = dense_launch(layout, dtype == torch.bfloat16, card.room)
    out = torch.empty(layout.tiles * TILE, layout.pieces * PIECE, dtype=dtype, device=codes.device)
    row_scale = _some(parts[3])
    many = min(-(-layout.tiles * layout.pieces // plan.knobs.warps), card.cores * 4)
    _kernel("product", device, "dense", plan.flags)(
        many, plan.knobs.warps * 32, plan.shared, _weight(layout, parts), out, row_scale,
        0 if row_scale is None else len(row_scale),
    )  # fmt: skip
    return out[: layout.N]


@decoded.register_fake
def _(parts: list[Tensor], how: list[int], dtype: torch.dtype) -> Tensor:
    layout = _layout(how)
    return parts[0].new_empty(layout.N, layout.pieces * PIECE, dtype=dtype)


def _keep(ctx, inputs, output) -> None:
    x, ctx.parts, ctx.how, bias, _ = inputs
    ctx.dtype, ctx.biased = x.dtype, bias is not None


def _backward(ctx, gradient: Tensor):
    weight = decoded(ctx.parts, ctx.how, ctx.dtype)
    bias = gradient.sum(0).to(ctx.dtype) if ctx.biased else None
    return gradient.to(ctx.dtype) @ weight, [None] * len(ctx.parts), None, bias, None


product.register_autograd(_backward, setup_context=_keep)


@torch.library.custom_op("panza::rotated", mutates_args=())
def rotated(
    x: Tensor, order: Tensor | None, signs: Tensor | None, bias: Tensor | None, block: int, after: bool, whole: int, D: int,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """(B, d) -> (B, D): permutation, signs and Hadamard transform of `whole` ≥ d numbers, its first D (zeros beyond whole).

    order: (whole,) int32, where each comes from. signs: before the transform, or `after` it. bias: (D,) of `dtype`.
    """
    d, kinds = x.shape[1], {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2}
    y = torch.empty(len(x), D, dtype=dtype, device=x.device)
    warps = max(4, block // 256)
    launch = _kernel("hadamard", x.device.index, "hadamard", (f"-DBLOCK={block}",))
    if len(x):
        launch(
            len(x) * -(-max(whole, D) // (warps * 256)), warps * 32, 0, x.contiguous(), y, order, signs, bias, d, D, whole,
            int(after), kinds[x.dtype], kinds[dtype],
        )  # fmt: skip
    return y


@rotated.register_fake
def _(x, order, signs, bias, block, after, whole, D, dtype) -> Tensor:
    return x.new_empty(len(x), D, dtype=dtype)


def _keep_rotation(ctx, inputs, output) -> None:
    x, ctx.order, ctx.signs, ctx.bias, ctx.block, ctx.after, ctx.whole, ctx.D, _ = inputs
    ctx.d, ctx.dtype = x.shape[1], x.dtype


def _rotate_back(ctx, gradient: Tensor):
    """The transform is its own inverse and transpose."""
    part = gradient[:, : min(ctx.D, ctx.whole)].contiguous()
    back = rotated(part, None, ctx.signs, None, ctx.block, not ctx.after, ctx.whole, ctx.whole, ctx.dtype)
    back = back if ctx.order is None else torch.empty_like(back).index_copy_(1, ctx.order.long(), back)
    bias = None if ctx.bias is None else gradient.sum(0).to(ctx.bias.dtype)
    return back[:, : ctx.d], None, None, bias, None, None, None, None, None


rotated.register_autograd(_rotate_back, setup_context=_keep_rotation)


def linear(packed: Packed, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., D) fp16 or bf16 -> (..., N): x Wᵀ + bias."""
    N, D = packed.shape
    if x.shape[-1] != D:
        raise CompressError(f"the layer takes {D} inputs, not {x.shape[-1]}")
    order, in_signs, out_signs = packed.turns
    flat, turned_out, room = x.reshape(-1, D), packed.out_block > 1, -(-packed.padded[1] // PIECE) * PIECE
    if packed.in_block > 1 or order is not None:
        read = rotated(flat, order, in_signs, None, packed.in_block, False, packed.padded[1], room, x.dtype)
    else:
        read = F.pad(flat, (0, room - D)) if room > D else flat
    last = x.dtype if packed.low_rank is None else torch.float32  # rounded once
    y = product(read, packed.parts, packed.how, None if turned_out else bias, turned_out or packed.low_rank is not None)
    if turned_out:
        y = rotated(
            y,
            None,
            out_signs,
            None if bias is None else bias.to(last),
            packed.out_block,
            True,
            packed.padded[0],
            N,
            last,
        )
    if packed.low_rank is not None:
        A, B = (part.float() for part in packed.low_rank)
        y = (y + F.linear(F.linear(flat.float(), A), B)).to(x.dtype)
    return y.view(*x.shape[:-1], N)


class PackedLinear(nn.Module):
    """A QuantizedLinear for inference alone: only what the kernels read, so nothing can be saved or tuned."""

    def __init__(self, packed: Packed, bias: Tensor | None) -> None:
        super().__init__()
        self.packed, self.bias = packed, bias
        self.out_features, self.in_features = packed.shape

    def forward(self, x: Tensor) -> Tensor:
        return linear(self.packed, x, None if self.bias is None else self.bias.to(x.dtype))
