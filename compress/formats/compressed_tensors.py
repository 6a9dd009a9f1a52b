"""compressed-tensors' pack-quantized layout, which vLLM serves.

weight_packed int32 [N, ⌈D·b/32⌉]: code + 2^(b−1) as a dense bit stream, low bits first (since 0.16; older versions put
ten 3-bit codes into a word). weight_scale [N, G]; weight_zero_point int32 along the outputs, if asymmetric;
weight_shape. No permutation, the same bits in all layers of a group of this config.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress import ops
from compress.decode import Grid
from compress.errors import CompressError
from compress.formats.shared import require, same, to_bytes, to_words
from compress.tables import Real, Whole
from compress.weight import QuantizedWeight

MARK = "weight_packed"
SUFFIXES = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")


def write(weight: QuantizedWeight, name: str) -> dict[str, Tensor]:
    require(weight, Grid, scale=Real)
    (N, D), grid = weight.shape, weight.decode
    if (grid.N, grid.D) != (N, D):
        raise CompressError(f"its {D} inputs are padded to {grid.D}: the group has to divide them")
    made = {
        "weight_packed": _words(ops.unpack(grid.codes.cpu(), D, grid.bits), grid.bits),
        "weight_scale": weight.scale.values.detach().cpu().half(),
        "weight_shape": torch.tensor([N, D]),
    }
    if grid.zero is not None:
        made["weight_zero_point"] = _words(grid.zero().cpu().int().T, grid.bits).T
    return made


def _words(codes: Tensor, bits: int) -> Tensor:
    """(rows, count) -> (rows, ⌈count·bits/32⌉) int32."""
    packed = ops.pack(codes, bits)
    return to_words(F.pad(packed, (0, -packed.shape[1] % 4)))


def read(tensors: dict[str, Tensor], shape: tuple[int, int], settings: dict[str, Any]) -> QuantizedWeight:
    (N, D), scale = shape, tensors["weight_scale"]
    bits = int(_scheme(settings)["num_bits"])
    G = scale.shape[1]
    if tensors["weight_packed"].shape != (N, -(-D * bits // 32)) or D % G:
        raise CompressError(
            f"{tuple(tensors['weight_packed'].shape)} words do not make a {N} × {D} weight at {bits} bits"
        )
    zero = tensors.get("weight_zero_point")
    if zero is not None:
        zero = Whole.of(ops.unpack(to_bytes(zero.T), N, bits).T, bits)
    grid = Grid(N, D, bits, zero)
    grid.codes = to_bytes(tensors["weight_packed"])[:, : ops.packed_bytes(D, bits)]
    return QuantizedWeight(shape, grid, Real.of(scale))


def _scheme(settings: dict[str, Any]) -> dict[str, Any]:
    groups = list(settings["config_groups"].values())
    if settings.get("format") != "pack-quantized" or len(groups) != 1:
        raise CompressError(
            f"compressed-tensors of format '{settings.get('format')}' with {len(groups)} groups: only pack-quantized "
            "with one group can be read"
        )
    return groups[0]["weights"]


def settings(name: str, layers: dict[str, nn.Module], plain: list[str]) -> dict[str, Any]:
    weights = {n: layer.quantized for n, layer in layers.items()}
    by_row = all(w.scale().shape[1] == 1 for w in weights.values())
    group = None if by_row else same({n: w.shape[1] // w.scale().shape[1] for n, w in weights.items()}, "group size")
    scheme = {
        "num_bits": same({n: w.decode.bits for n, w in weights.items()}, "bits"),
        "type": "int",
        "symmetric": same({n: w.decode.zero is None for n, w in weights.items()}, "symmetry"),
        "strategy": "channel" if by_row else "group",
        "group_size": group,
        "dynamic": False,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": scheme}},
        "ignore": [n.removesuffix(".weight") for n in plain if "lm_head" in n],
    }
