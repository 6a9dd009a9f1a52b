"""Products with compressed weights on an NVIDIA GPU, by kernels compiled at first use. Knows weights; knows no model, no file.

`pack` lays a weight out in the order in which the tensor cores take it (kernels/cuda/product.cu); `linear` multiplies with
it: up to 8 tokens from registers, up to 128 in passes of 64, more through the decoded weight and cuBLAS, and so
do gradients of the inputs. The definition is `compress.weight.QuantizedWeight.dense` and a product with it.
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
from compress.weight import QuantizedWeight

TILE, PIECE = 16, 128  # outputs and inputs whose codes lie together
NARROW, WIDE, MOST = 8, 64, 128  # tokens: of one pass of either kernel; above MOST the weight is decoded
KINDS = ("grid", "additive", "trellis")
LONGEST = 8192  # Hadamard's block that fits into shared memory
SMALLEST, WITH_BF16 = (7, 5), (8, 0)  # compute capability: the tensor cores' m16n8k8, and of bf16
HALVES = (torch.float16, torch.bfloat16)
LEAST = 42 * 1024  # bytes of shared memory for inputs and sums, beside a table
AT_ONCE = 1 << 24  # weights whose codes lie unpacked at a time, at about 20 bytes each, while one is packed
COPIES = 128 * 1024  # bytes of shared memory for copies of a table, at most


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
    span: int = 1  # pieces that share a scale
    rows: int = 1  # tiles that share a second-level scale
    sparse: int = 0


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


PARTS = ("codes", "scales", "second", "tail", "table", "row_scale", "starts", "columns", "values")


def usable(device: torch.device, dtype: torch.dtype = torch.float16) -> bool:
    """Whether the kernels run there, on such inputs. Says once why they do not on a GPU that torch could use."""
    if device.type != "cuda" or dtype not in HALVES or not _usable(device.index or 0):
        return False
    return dtype == torch.float16 or torch.cuda.get_device_capability(device) >= WITH_BF16


@lru_cache
def _usable(index: int) -> bool:
    try:
        if nvrtc.kernel("hadamard", index, smallest=SMALLEST) is not None:
            return True
        why = "there is no NVRTC beside torch, no NVIDIA driver, or the GPU is older than compute capability 7.5"
    except (RuntimeError, OSError, AttributeError) as error:  # no sources there, or another NVRTC than we know
        why = f"they do not compile: {error}"
    warnings.warn(f"compressed products run on plain torch, not on their own kernels: {why}", stacklevel=3)
    return False


# --- the layout ----------------------------------------------------------------------------------------------------


def pack(weight: QuantizedWeight) -> Packed | None:
    """The weight for the kernels, on its device; None for kinds and sizes that they do not take."""
    decode, (N, D) = weight.decode, weight.shape
    tiles, pieces = -(-decode.N // TILE), -(-decode.D // PIECE)
    transform = weight.transform
    plain = transform.in_block == transform.out_block == 1 and transform.order is None
    if max(transform.in_block, transform.out_block) > LONGEST or (weight.sparse is not None and not plain):
        return None
    layout = Layout(0, 0, N if transform.out_block == 1 else decode.N, tiles, pieces)
    packer = {Grid: _pack_grid, Additive: _pack_additive, Trellis: _pack_trellis}.get(type(decode))
    coded = packer(decode, layout) if packer else None
    scaled = _pack_scales(weight, coded[0]) if coded else None
    if scaled is None:
        return None
    layout, more = scaled
    parts = dict.fromkeys(PARTS) | coded[1] | more
    if weight.sparse is not None:
        weight.sparse.check()
        layout = replace(layout, sparse=1)
        parts |= {"starts": weight.sparse.starts, "columns": weight.sparse.columns.view(torch.int16)}
        parts |= {"values": weight.sparse.values.detach().half()}
    if any(t.numel() * t.element_size() >= 1 << 32 for t in parts.values() if t is not None):
        return None  # the kernels count bytes in 32 bits
    device = decode.codes.device
    if device.type == "cuda" and _table(layout, 0)[1] > _card(device.index)[1] - LEAST:
        return None  # an older card with less shared memory than the table
    none = torch.empty(0, device=device)
    low = weight.low_rank
    return Packed(
        list(astuple(layout)), [none if p is None else p.contiguous() for p in parts.values()], (N, D), (decode.N, decode.D),
        transform.in_block, transform.out_block, (transform.order, transform.in_signs, transform.out_signs),
        None if low is None else (low.A.detach(), low.B.detach()),
    )  # fmt: skip


def _lanes(codes: Tensor, layout: Layout) -> Tensor:
    """(n, D, ...) codes of some rows -> (tiles of them, pieces, g, t, j, half, 8, ...): see the head of product.cu."""
    short = [0, 0] * (codes.dim() - 2)
    padded = F.pad(codes, (*short, 0, layout.pieces * PIECE - codes.shape[1], 0, -len(codes) % TILE))
    lanes = padded.reshape(-1, 2, 8, layout.pieces, 4, 4, 8, *codes.shape[2:])
    return lanes.permute(0, 3, 2, 5, 4, 1, 6, *range(7, lanes.dim()))


def _by_tiles(decode: Grid | Additive, packed: Callable[[Tensor], Tensor]) -> Tensor:
    """(n, bytes) of some rows -> their tiles, `packed`: those of all rows, a few at a time, so that a head of a large vocabulary fits."""
    rows = max(1, AT_ONCE // decode.D // TILE) * TILE
    return torch.cat([packed(part) for part in decode.codes.split(rows)])


def _interleaved(words: Tensor) -> Tensor:
    """(tiles, pieces, 32 lanes, words) int32 -> a buffer of 16 bytes a lane at a time, then the 8 that may be left."""
    tiles, pieces, lanes, count = words.shape
    most = count // 4 * 4
    fours = words[..., :most].unflatten(-1, (-1, 4)).transpose(2, 3).flatten(2)  # (tiles, pieces, fours, lanes, 4)
    return torch.cat((fours, words[..., most:].flatten(2)), 2).contiguous()


def _words(parts: Tensor) -> Tensor:
    """(..., 4 k) bytes -> (..., k) int32."""
    return parts.to(torch.uint8).contiguous().view(torch.int32)


def _pack_grid(decode: Grid, layout: Layout) -> tuple[Layout, dict[str, Tensor]] | None:
    bits = decode.bits
    if bits not in (2, 3, 4, 8):
        return None
    zero = 2 ** (bits - 1) if decode.zero is None else 0
    made = replace(layout, kind=0, bits=bits, center=zero, zeros=int(decode.zero is not None))
    words = _by_tiles(decode, lambda codes: _grid_words(ops.unpack(codes, decode.D, bits), bits, layout))
    return made, {"codes": words}


def _grid_words(codes: Tensor, bits: int, layout: Layout) -> Tensor:
    lanes = _lanes(codes, layout).unflatten(-1, (2, 2, 2))  # (..., j, half, m, e, two)
    pairs = lanes.permute(0, 1, 2, 3, 4, 6, 7, 5, 8).reshape(-1, layout.pieces, 32, 32, 2)  # order j, m, e, half
    per = 16 // bits
    count = 30 if bits == 3 else 32
    at = torch.arange(per, device=codes.device, dtype=torch.int32) * bits
    halves = (pairs[..., :count, :].unflatten(3, (-1, per)) << at[:, None]).sum(4, dtype=torch.int32)  # (..., words, 2)
    if bits == 3:
        bit = torch.arange(3, device=codes.device, dtype=torch.int32)
        left = pairs[..., 30:, None, :] >> bit[:, None] & 1  # (..., 2, 3, 2): a bit of the last pairs in each word
        halves = halves | left.flatten(3, 4) << 15
    return _interleaved(halves[..., 0] | halves[..., 1] << 16)


def _pack_additive(decode: Additive, layout: Layout) -> tuple[Layout, dict[str, Tensor]] | None:
    wide = decode.bits == 16 and decode.books == 1
    if decode.group != 8 or not (wide or (decode.bits == 8 and decode.books <= 8)):
        return None
    count = 2 if wide else decode.books  # bytes of 8 inputs

    def words(codes: Tensor) -> Tensor:
        parts = codes.reshape(
            len(codes), -1, count
        )  # (n, D / 8, bytes): a code of 16 bits is two of them, the low one first
        lanes = _lanes(parts.repeat_interleave(8, 1), layout)[..., 0, :]  # (tiles, pieces, g, t, j, half, bytes)
        return _interleaved(_words(lanes.reshape(-1, layout.pieces, 32, 8 * count)))

    made = replace(layout, kind=1, bits=count, wide=int(wide))
    return made, {"codes": _by_tiles(decode, words), "table": decode.words().detach().half()}


def _pack_trellis(decode: Trellis, layout: Layout) -> tuple[Layout, dict[str, Tensor]] | None:
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
    tail = codes[:, 32 * step * 8 :: 32 * step * 8]  # the first byte of the next piece
    made = replace(layout, kind=2, bits=step, window=window)
    return made, {"codes": _interleaved(words), "tail": tail.contiguous(), "table": decode.lut.detach().half()}


def _pack_scales(weight: QuantizedWeight, layout: Layout) -> tuple[Layout, dict[str, Tensor]] | None:
    """Scales and zeros: of rows, of groups, or of two levels as SpQR has them."""
    scale, zero = weight.scale, getattr(weight.decode, "zero", None)
    values = None if scale is None else scale().detach()  # (N', G)
    if zero is None and (values is None or values.shape[1] == 1):
        return layout, {} if values is None else {"row_scale": values[:, 0].half()}
    zeros = None if zero is None else zero().detach()
    counts = {t.shape[1] for t in (values, zeros) if t is not None}
    groups, D = max(counts), weight.decode.D
    coarse = isinstance(zero, TwoLevel) and zero.groups < groups  # no half: its rounding would shift a whole row
    if counts - {1, groups} or D % groups or coarse:
        return None
    size = D // groups
    if _two_levels(weight, size):
        return _pack_two_levels(scale, zero, layout)
    part = math.gcd(size, PIECE) if groups > 1 else PIECE
    if part < TILE:
        return None
    span = size // PIECE if groups > 1 and part == PIECE else layout.pieces if groups == 1 else 1
    count = layout.pieces // span * (PIECE // part)  # groups of a row as the kernels see them
    tables = [torch.ones_like(zeros) if values is None else values, *([] if zeros is None else [zeros])]
    chained = KINDS[layout.kind] == "trellis"
    order = [2 * g + s if chained else g + 8 * s for g in range(8) for s in range(2)]
    made = []
    for table in tables:
        table = table.expand(-1, groups)
        table = table if part == PIECE else table.repeat_interleave(size // part, 1)
        table = F.pad(table, (0, count - table.shape[1], 0, layout.tiles * TILE - len(table))).half()
        made.append(table.view(layout.tiles, TILE, count)[:, order].permute(0, 2, 1).unflatten(2, (8, 2)))
    entries = torch.stack(made, -2)  # (tiles, groups, g, [scale, zero], [first, second])
    return replace(layout, scale=1, groups=PIECE // part, span=span), {"scales": entries.contiguous()}


def _two_levels(weight: QuantizedWeight, size: int) -> bool:
    tables = weight.scale, getattr(weight.decode, "zero", None)
    return (
        size == TILE
        and all(isinstance(t, TwoLevel) and t.bits <= 4 for t in tables)
        and (tables[0].rows, tables[0].groups) == (tables[1].rows, tables[1].groups)
        and (tables[0].rows % TILE == 0 or tables[0].rows >= weight.decode.N)
    )


def _pack_two_levels(scale: TwoLevel, zero: TwoLevel, layout: Layout) -> tuple[Layout, dict[str, Tensor]]:
    """A byte of both codes for each output and 16 inputs; halves (scale's scale, its zero, zero's scale, its zero)."""
    both = ops.unpack(scale.codes, scale.groups, scale.bits) | ops.unpack(zero.codes, zero.groups, zero.bits) << 4
    both = F.pad(both, (0, layout.pieces * 8 - scale.groups, 0, layout.tiles * TILE - scale.N)).to(torch.uint8)
    lanes = both.view(layout.tiles, 2, 8, layout.pieces, 4, 2).permute(0, 3, 2, 5, 4, 1)  # (..., g, t / 2, j, half)
    levels = torch.stack((scale.scale, scale.zero, zero.scale, zero.zero), -1).detach().half()  # (blocks, G, 4)
    levels = F.pad(levels, (0, 0, 0, layout.pieces * 8 - scale.groups)).contiguous()
    rows = layout.tiles if scale.rows >= scale.N else scale.rows // TILE
    made = replace(layout, scale=2, groups=8, zeros=1, rows=rows)
    return made, {"scales": lanes.contiguous(), "second": levels}


# --- launches ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Knobs:
    """Sizes of a launch: see product.cu. `knobs` has what measured best."""

    warps: int
    depth: int
    team: int = 1  # warps that share a tile's pieces, in `narrow`
    tiles: int = 1  # of a warp, in `wide`
    inputs: int = 1
    most: int = COPIES


def knobs(layout: Layout, B: int, cores: int = 132) -> Knobs:
    """For so many tokens on a card of so many multiprocessors."""
    kind = KINDS[layout.kind]
    if B <= NARROW:
        warps = 32 if layout.bits <= 4 else 16  # as many as registers allow
        turns = -(-layout.tiles // cores)  # tiles of a multiprocessor: one team each, if there are enough
        team = max(4, min(warps, 32 // (1 << (turns - 1).bit_length())))
        return Knobs(warps, 1, team)
    if kind == "grid" and (B <= 32 or layout.sparse):
        return Knobs(16, 3, tiles=2 if B <= 32 else 1)
    if kind == "additive" and B <= 16:
        return Knobs(8, 3, tiles=4)
    return Knobs(8, 3, tiles=2 if kind == "trellis" and B > 32 else 3)


@lru_cache
def _card(index: int) -> tuple[int, int]:
    """(multiprocessors, bytes of shared memory that a block may have)."""
    p = torch.cuda.get_device_properties(index)
    return p.multi_processor_count, getattr(p, "shared_memory_per_block_optin", 64 * 1024)


def _table(layout: Layout, room: int) -> tuple[int, int]:
    """(copies of the table, bytes of all of them) within so many bytes."""
    kind = KINDS[layout.kind]
    if kind == "grid" or layout.wide:
        return 1, 0
    one, most = (layout.bits * 4096, 8) if kind == "additive" else (4 << layout.window + layout.bits, 32)
    while most > 1 and one * most > room:
        most //= 2
    return most, one * most


def _flags(layout: Layout, part: int, copies: int, bf16: bool, fan: int, k: Knobs, tokens: int = 1) -> tuple[str, ...]:
    numbers = {
        "KIND": layout.kind, "BITS": layout.bits, "WINDOW": layout.window, "WIDE": layout.wide, "CENTER": layout.center,
        "SCALE": layout.scale, "GROUPS": layout.groups, "ZEROS": layout.zeros, "SPARSE": layout.sparse, "REP": copies,
        "BF16": int(bf16), "NT": fan, "R": k.tiles, "WARPS": k.warps, "TEAM": k.team, "DEPTH": k.depth, "INPUTS": k.inputs, "PART": part, "TOKENS": tokens,
    }  # fmt: skip
    return tuple(f"-D{name}={number}" for name, number in numbers.items())


def _some(tensor: Tensor | None) -> Tensor | None:
    return tensor if tensor is not None and tensor.numel() else None


def _weight(layout: Layout, parts: list[Tensor], bf16: bool) -> tuple[bytes, Tensor]:
    """product.cu's struct Weight, and a tensor that must live as long."""
    codes, scales, second, tail, table = parts[:5]
    if bf16 and KINDS[layout.kind] == "trellis" and layout.scale == 0:
        table = table.bfloat16()  # a weight is one entry: rounded once, as a decoded weight is
    pointers = (t.data_ptr() if t.numel() else 0 for t in (codes, scales, second, tail, table))
    groups = layout.pieces * layout.groups // layout.span
    numbers = layout.tiles, layout.pieces, layout.span, layout.rows, groups, 0
    return struct.pack("5Q6i", *pointers, *numbers), table


@dataclass(frozen=True)
class Launch:
    """How to start a kernel: flags to compile it, bytes of shared memory, eights of tokens, the knobs as they fit the card."""

    flags: tuple[str, ...]
    shared: int
    fan: int
    knobs: Knobs


def narrow_launch(layout: Layout, B: int, bf16: bool, k: Knobs, room: int) -> Launch:
    """Of `narrow` for B tokens, on a card whose blocks may have `room` bytes of shared memory."""
    fan, a_warp = -(-B // 8), 2 * (1 + layout.sparse) * -(-B // 8) * 8 * 20 * 4  # bytes of sums
    while k.warps * a_warp + _table(layout, 0)[1] > room:
        k = replace(k, warps=k.warps // 2, team=min(k.team, k.warps // 2))
    sums = k.warps * a_warp
    kept = B * (layout.pieces * PIECE + 32) * 2
    copies, table = _table(layout, min(k.most, room - sums))
    if k.inputs and table + sums + kept > room:  # half the copies cost less than inputs from global memory
        half = _table(layout, table // 2)
        if half[1] + sums + kept <= room and half[0] < copies:
            copies, table = half
        else:
            k = replace(k, inputs=0)
    flags = _flags(layout, 0, copies, bf16, fan, k, B if layout.sparse else 1)
    return Launch(flags, table + sums + k.inputs * kept, fan, k)


def wide_launch(layout: Layout, B: int, bf16: bool, k: Knobs, room: int) -> Launch:
    """Of `wide` and `finish`."""
    fan = next(n for n in (2, 4, 8) if n * 8 >= B)
    row = 2 * (PIECE + 32) * fan * 8
    k = replace(k, depth=max(2, min(k.depth, (room - 16 * 1024) // row)))
    copies, table = _table(layout, min(k.most, room - k.depth * row))
    return Launch(_flags(layout, 1, copies, bf16, fan, k), table + k.depth * row, fan, k)


def narrow(x: Tensor, parts: list[Tensor], layout: Layout, bias: Tensor | None, y: Tensor, k: Knobs) -> None:
    """y (B, N) of up to NARROW tokens. x: (B, pieces * PIECE)."""
    B, bf16, device = len(x), x.dtype == torch.bfloat16, x.device.index
    cores, room = _card(device)
    how = narrow_launch(layout, B, bf16, k, room)
    weight, _table_alive = _weight(layout, parts, bf16)
    row_scale, starts, columns, values = (_some(p) for p in parts[5:])
    nvrtc.kernel("product", device, "narrow", how.flags)(
        min(cores, layout.tiles), k.warps * 32, how.shared, weight, x, y, row_scale, bias, starts, columns, values,
        layout.N, B, int(y.dtype == torch.float32),
    )  # fmt: skip


def wide(x: Tensor, parts: list[Tensor], layout: Layout, bias: Tensor | None, y: Tensor, k: Knobs) -> None:
    """As `narrow`, of up to WIDE tokens."""
    B, bf16, device = len(x), x.dtype == torch.bfloat16, x.device.index
    cores, room = _card(device)
    how = wide_launch(layout, B, bf16, k, room)
    height, fan = k.warps * k.tiles, how.fan
    blocks = -(-layout.tiles // height)
    shares = min(cores, blocks * layout.pieces)
    assert blocks * layout.pieces * shares < 1 << 32, "the kernel divides in 32 bits"
    slots = _slots(blocks, layout.pieces, shares)
    sums = torch.empty(blocks * slots * fan * 8 * height * TILE, dtype=torch.float32, device=x.device)
    turned = torch.empty(layout.pieces * PIECE * fan * 8 if layout.sparse else 0, dtype=x.dtype, device=x.device)
    weight, _table_alive = _weight(layout, parts, bf16)
    row_scale, starts, columns, values = (_some(p) for p in parts[5:])
    nvrtc.kernel("product", device, "wide", how.flags)(
        shares, k.warps * 32, how.shared, weight, x, sums, _some(turned), B, slots
    )
    nvrtc.kernel("product", device, "finish", how.flags)(
        layout.tiles * (1 if layout.sparse else -(-B // 16)), 256, 0, sums, _some(turned), y, row_scale, bias, starts, columns, values,
        layout.N, B, int(y.dtype == torch.float32), layout.tiles, layout.pieces, shares, slots,
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


def _checked(x: Tensor, parts: list[Tensor], layout: Layout) -> None:
    if x.dtype not in HALVES or (x.is_cuda and not usable(x.device, x.dtype)):
        raise CompressError(f"the GPU's kernels multiply float16, from Ampere on bfloat16, not {x.dtype} on {x.device}")
    if x.dim() != 2 or x.shape[1] != layout.pieces * PIECE:
        raise CompressError(f"these inputs are {tuple(x.shape)}, the packed weight takes (B, {layout.pieces * PIECE})")
    if parts[0].device != x.device or not x.is_cuda:
        raise CompressError(f"the inputs are on {x.device} and the packed weight is on {parts[0].device}")
    if parts[0].numel() != layout.tiles * layout.pieces * 64 * layout.bits:
        raise CompressError(
            f"{parts[0].numel()} words of codes are not those of {layout.tiles} by {layout.pieces} tiles"
        )


@torch.library.custom_op("panza::product", mutates_args=())
def product(x: Tensor, parts: list[Tensor], how: list[int], bias: Tensor | None, full: bool) -> Tensor:
    """(B, pieces * PIECE) -> (B, N): x Ŵᵀ + outliers + bias, in the space of the codes. full: fp32 sums, else x's dtype."""
    layout = _layout(how)
    _checked(x, parts, layout)
    x, B = x.contiguous(), len(x)
    y = torch.empty(B, layout.N, dtype=torch.float32 if full else x.dtype, device=x.device)
    if B > MOST:
        made = F.linear(x, decoded(parts, how, x.dtype), bias)  # outliers are in
        return made.float() if full else made
    cores, _ = _card(x.device.index)
    if B <= NARROW:
        if B:
            narrow(x, parts, layout, bias, y, knobs(layout, B, cores))
        return y
    for at in range(0, B, WIDE):
        some = x[at : at + WIDE]
        wide(some, parts, layout, bias, y[at : at + WIDE], knobs(layout, len(some), cores))
    return y


@product.register_fake
def _(x: Tensor, parts: list[Tensor], how: list[int], bias: Tensor | None, full: bool) -> Tensor:
    return x.new_empty(len(x), _layout(how).N, dtype=torch.float32 if full else x.dtype)


@torch.library.custom_op("panza::decoded", mutates_args=())
def decoded(parts: list[Tensor], how: list[int], dtype: torch.dtype) -> Tensor:
    """(N, pieces * PIECE): the packed weight in the space of the codes, with its outliers."""
    layout, codes = _layout(how), parts[0]
    bf16, device = dtype == torch.bfloat16, codes.device.index
    k = Knobs(8, 1)
    cores, room = _card(device)
    copies, table = _table(layout, min(room, 32 * 1024))
    out = torch.empty(layout.tiles * TILE, layout.pieces * PIECE, dtype=dtype, device=codes.device)
    weight, _table_alive = _weight(layout, parts, bf16)
    row_scale = _some(parts[5])
    launch = nvrtc.kernel("product", device, "dense", _flags(layout, 2, copies, bf16, 1, k))
    many = min(-(-layout.tiles * layout.pieces // k.warps), cores * 4)
    launch(many, k.warps * 32, table, weight, out, row_scale, 0 if row_scale is None else len(row_scale))
    out = out[: layout.N]
    if layout.sparse:
        starts, columns, values = parts[6:]
        row = torch.arange(layout.N, device=codes.device).repeat_interleave(starts.diff(), output_size=len(values))
        where = row, columns.view(torch.uint16).long()
        out.index_put_(where, (out[where].float() + values.float()).to(dtype))
    return out


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
    d, used = x.shape[1], min(D, whole)
    y = (torch.zeros if D > whole else torch.empty)(len(x), D, dtype=dtype, device=x.device)
    span = max(block, 1024)
    launch = nvrtc.kernel("hadamard", x.device.index)
    kinds = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2}
    if len(x):
        launch(
            len(x) * -(-whole // span), 512, span * 4, x.contiguous(), y, order, signs, bias, d, used, D, whole, block,
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
