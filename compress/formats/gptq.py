"""GPTQ's layout, versions 1 and 2.

qweight int32 [D·b/32, N]: the codes of an output along the inputs, a bit stream, low bits first. qzeros int32
[G, N·b/32]: along the outputs; version 1 stores zero − 1. scales fp16 [G, N]. g_idx int32 [D]: each input's group.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compress import ops
from compress.decode import Grid
from compress.errors import CompressError
from compress.formats.shared import require, same, to_bytes, to_words
from compress.tables import Real, Whole
from compress.transform import Transform
from compress.weight import QuantizedWeight

MARK, SUFFIXES = "qweight", ("qweight", "qzeros", "scales", "g_idx")
BITS = (2, 3, 4, 8)


def write(weight: QuantizedWeight, name: str) -> dict[str, Tensor]:
    require(weight, Grid, scale=Real, order=True)
    (N, D), grid = weight.shape, weight.decode
    if grid.bits not in BITS or (grid.N, grid.D) != (N, D) or N % 32 or D % 32:
        raise CompressError(f"{N} × {D} at {grid.bits} bits: both sizes have to divide by 32, bits be one of {BITS}")
    scale = weight.scale()  # (N, G)
    group = D // scale.shape[1]
    zero = torch.full_like(scale, 2.0 ** (grid.bits - 1)) if grid.zero is None else grid.zero()
    if name == "gptq" and (zero == 0).any():
        raise CompressError("a zero of 0 has no place in version 1, where old readers let it run over: use gptq_v2")
    order = weight.transform.order
    order = torch.arange(D) if order is None else order.cpu().long()
    codes = ops.unpack(grid.codes.cpu(), D, grid.bits)[:, order.argsort()]  # in the order of the inputs
    stored = (zero.cpu().int() - int(name == "gptq")) % 2**grid.bits
    return {
        "qweight": to_words(ops.pack(codes, grid.bits)).T,
        "qzeros": to_words(ops.pack(stored.T, grid.bits)),
        "scales": scale.detach().cpu().half().T,
        "g_idx": (order.argsort() // group).int(),
    }


def read(tensors: dict[str, Tensor], shape: tuple[int, int], settings: dict[str, Any]) -> QuantizedWeight:
    bits, (N, D) = int(settings["bits"]), shape
    G = len(tensors["scales"])
    groups = tensors.get("g_idx", torch.arange(D) // -(-D // G)).long()
    if bits not in BITS or not G or D % G:
        raise CompressError(f"{bits} bits in {G} groups of a {N} × {D} weight: groups of equal size, bits of {BITS}")
    sizes = {"qweight": (D * bits // 32, N), "qzeros": (G, N * bits // 32), "scales": (G, N)}
    for name, size in sizes.items():
        if tuple(tensors[name].shape) != size:
            raise CompressError(f"{name} is {tuple(tensors[name].shape)}, not {size} as a {N} × {D} weight needs")
    inside = groups.shape == (D,) and 0 <= groups.min() and groups.max() < G
    if not inside or not torch.equal(groups.bincount(minlength=G), torch.full((G,), D // G)):
        raise CompressError(f"g_idx does not share {D} inputs out among {G} groups of equal size")
    codes = ops.unpack(to_bytes(tensors["qweight"].T), D, bits)  # (N, D)
    zero = ops.unpack(to_bytes(tensors["qzeros"]), N, bits).T  # (N, G)
    zero = zero if settings.get("checkpoint_format") == "gptq_v2" else (zero + 1) % 2**bits
    order = groups.argsort(stable=True)
    transform = Transform(N, D, permuted=not torch.equal(order, torch.arange(D)))
    if transform.order is not None:
        transform.order = order.int()
    grid = Grid(N, D, bits, Whole.of(zero, bits))
    grid.codes = ops.pack(codes[:, order], bits)
    return QuantizedWeight(shape, grid, Real.of(tensors["scales"].T), transform)


def settings(name: str, layers: dict[str, nn.Module], plain: list[str]) -> dict[str, Any]:
    weights = {n: layer.quantized for n, layer in layers.items()}
    groups = {n: w.shape[1] // w.scale().shape[1] for n, w in weights.items()}
    one = all(w.scale().shape[1] == 1 for w in weights.values())
    return {
        "quant_method": "gptq",
        "bits": same({n: w.decode.bits for n, w in weights.items()}, "bits"),
        "group_size": -1 if one else same(groups, "group size"),
        "desc_act": any(w.transform.order is not None for w in weights.values()),
        "sym": all(w.decode.zero is None for w in weights.values()),
        "checkpoint_format": name,
        "lm_head": False,
    }
