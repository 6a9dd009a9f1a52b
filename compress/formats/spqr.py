"""SpQR's layout, as the `spqr_quant` package writes it: 3 bits, tiles of 16 × 16.

dense_weights int64: tiles of rows outer, of columns inner, a word a row: 3 bits of the scale's code, 3 of the zero's, 16
weights of 3 bits, then a byte of the tile's second level (bytes of rows 2i and 2i+1 are byte i of scale-of-scales,
scale-of-zeros, zero-of-scales, zero-of-zeros, fp16 each). Outliers: row_offsets int32, CSR (N + 1) or PTCSR (16 rows
padded to equal length, interleaved); col_vals int32: fp16 value above a 16-bit column. in_perm int32: two 16-bit inputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compress import ops
from compress.decode import Grid
from compress.errors import CompressError
from compress.formats.shared import require
from compress.tables import TwoLevel
from compress.transform import Transform
from compress.weight import QuantizedWeight, Sparse

MARK, SUFFIXES = "dense_weights", ("dense_weights", "row_offsets", "col_vals", "in_perm")
BITS, TILE = 3, 16


def write(weight: QuantizedWeight, name: str) -> dict[str, Tensor]:
    require(weight, Grid, scale=TwoLevel, order=True, sparse=True)
    D, grid, scale, zero = weight.shape[1], weight.decode, weight.scale, weight.decode.zero
    layout = (grid.bits, getattr(zero, "bits", 0), scale.bits, scale.rows, getattr(zero, "rows", 0), grid.D)
    if layout != (BITS, BITS, BITS, TILE, TILE, scale.groups * TILE):
        raise CompressError("the format is 3 bits with 3-bit scales and zeros in tiles of 16 × 16")
    if weight.transform.order is not None and grid.D != D:
        raise CompressError(f"its {D} permuted inputs do not fill tiles of 16")
    words = _first_level(grid, scale, zero) | _second_level(scale, zero)
    order = weight.transform.order
    order = torch.arange(D) if order is None else order.long().cpu()
    offsets, col_vals = _outliers(weight, order)
    permuted = weight.transform.order is not None
    pairs = torch.nn.functional.pad(order, (0, D % 2)).view(-1, 2)
    in_perm = (pairs[:, 0] | pairs[:, 1] << 16).int() if permuted else torch.zeros(0, dtype=torch.int32)
    return {"dense_weights": words.flatten(), "row_offsets": offsets, "col_vals": col_vals, "in_perm": in_perm}


def _first_level(grid: Grid, scale: TwoLevel, zero: TwoLevel) -> Tensor:
    """(row tiles, column tiles, 16) int64: codes of scale, zero and weights."""
    G = scale.groups
    fields = torch.cat(
        (
            ops.unpack(scale.codes, G, BITS)[..., None],
            ops.unpack(zero.codes, G, BITS)[..., None],
            ops.unpack(grid.codes, grid.D, BITS).view(grid.N, G, TILE),
        ),
        2,
    ).long()  # (N, G, 18)
    words = (fields << torch.arange(18) * BITS).sum(2)
    return torch.nn.functional.pad(words, (0, 0, 0, -grid.N % TILE)).view(-1, TILE, G).transpose(1, 2)


def _second_level(scale: TwoLevel, zero: TwoLevel) -> Tensor:
    """(row tiles, column tiles, 16) int64: each row's byte of the four fp16 numbers, at bit 54."""
    numbers = torch.stack((scale.scale, zero.scale, scale.zero, zero.zero), 2).detach().half()  # (row tiles, G, 4)
    tile_bytes = numbers.view(torch.uint8).long()  # (row tiles, G, 8)
    return tile_bytes.repeat_interleave(2, 2) << 18 * BITS


def _outliers(weight: QuantizedWeight, order: Tensor) -> tuple[Tensor, Tensor]:
    """CSR whose columns count the permuted inputs."""
    sparse = weight.sparse or Sparse(*weight.shape, 0)
    columns = order.argsort()[sparse.columns.long()]
    values = sparse.values.detach().half().view(torch.int16).int()
    return sparse.starts, values << 16 | columns.int()


def read(tensors: dict[str, Tensor], shape: tuple[int, int], settings: dict[str, Any]) -> QuantizedWeight:
    N, D = shape
    G, tiles = -(-D // TILE), -(-N // TILE)
    if tensors["dense_weights"].numel() != tiles * G * TILE:
        raise CompressError(f"{tensors['dense_weights'].numel()} words do not make a {N} × {D} weight")
    words = tensors["dense_weights"].view(tiles, G, TILE).transpose(1, 2).reshape(-1, G)[:N]  # (N, G)
    fields = words[..., None] >> torch.arange(18) * BITS & 7
    scale, zero = (TwoLevel(N, G, BITS, TILE) for _ in range(2))
    scale.codes, zero.codes = (ops.pack(fields[..., i], BITS) for i in range(2))
    bytes_ = tensors["dense_weights"].view(tiles, G, TILE // 2, 2) >> 18 * BITS & 255
    numbers = (bytes_[..., 0] | bytes_[..., 1]).to(torch.uint8).contiguous().view(torch.float16)  # (tiles, G, 4)
    scale.scale.data, zero.scale.data, scale.zero.data, zero.zero.data = (n.contiguous() for n in numbers.unbind(2))
    grid = Grid(N, G * TILE, BITS, zero)
    grid.codes = ops.pack(fields[..., 2:].reshape(N, -1), BITS)
    transform, order = _order(tensors["in_perm"], N, D, grid.D)
    return QuantizedWeight(shape, grid, scale, transform, _sparse(tensors, shape, order))


def _order(in_perm: Tensor, N: int, D: int, padded: int) -> tuple[Transform, Tensor]:
    made = Transform(N, padded, permuted=bool(len(in_perm)))
    if not len(in_perm):
        return made, torch.arange(D)
    order = torch.stack((in_perm & 0xFFFF, in_perm >> 16 & 0xFFFF), 1).flatten()[:D].long()
    if not torch.equal(order.sort().values, torch.arange(D)):
        raise CompressError("in_perm is no permutation of the inputs")
    made.order = torch.cat((order, torch.arange(D, padded))).int()
    return made, order


def _sparse(tensors: dict[str, Tensor], shape: tuple[int, int], order: Tensor) -> Sparse | None:
    """The outliers, columns of the true inputs, from CSR or PTCSR; padding (value 0) dropped."""
    offsets, col_vals = tensors["row_offsets"].long(), tensors["col_vals"].long()
    if offsets[0] != 0 or offsets[-1] != len(col_vals) or (offsets.diff() < 0).any():
        raise CompressError("row_offsets do not count the outliers")
    band = torch.arange(len(offsets) - 1).repeat_interleave(offsets.diff())
    row = band if len(offsets) == shape[0] + 1 else band * TILE + torch.arange(len(band)) % TILE
    column = col_vals & 0xFFFF
    values = (col_vals >> 16).to(torch.int16).view(torch.float16)
    dense = torch.zeros(shape)
    kept = values != 0
    dense[row[kept], order[column[kept]]] = values[kept].float()
    return Sparse.of(dense) if kept.any() else None


def settings(name: str, layers: dict[str, nn.Module], plain: list[str]) -> dict[str, Any]:
    shapes = {}
    for layer, module in layers.items():
        shapes |= {f"{layer}.{s}.shape": t.numel() for s, t in write(module.quantized, name).items()}
    return {
        "quant_method": "spqr",
        "bits": BITS,
        "beta1": TILE,
        "beta2": TILE,
        "modules_to_not_convert": [n.removesuffix(".weight") for n in plain],
        "shapes": shapes,
    }
