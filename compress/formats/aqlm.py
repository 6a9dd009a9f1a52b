"""AQLM's layout, as the `aqlm` package and transformers read it.

codes [N/og, D/ig, M] int8 or int16 (two's complement of the unsigned code), codebooks [M, 2^B, og, ig] fp16, scales
[N/og, 1, 1, 1] fp16. One scheme for all layers; what is not compressed is listed by name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compress import ops
from compress.decode import Additive
from compress.errors import CompressError
from compress.formats.shared import require, same
from compress.tables import Real
from compress.weight import QuantizedWeight

MARK, SUFFIXES = "codes", ("codes", "codebooks", "scales")


def write(weight: QuantizedWeight, name: str) -> dict[str, Tensor]:
    require(weight, Additive, scale=Real)
    if weight.scale().shape[1] != 1:
        raise CompressError("it has scales by group, the format has one a row")
    wide = torch.int16 if weight.decode.bits > 8 else torch.int8
    scales = weight.scale.values.detach().half().view(-1, 1, 1, 1)
    books = weight.decode.words().detach().half()[:, :, None]
    return {"codes": weight.decode.indices().to(wide), "codebooks": books, "scales": scales}


def read(tensors: dict[str, Tensor], shape: tuple[int, int], settings: dict[str, Any]) -> QuantizedWeight:
    bits, (N, D) = int(settings["nbits_per_codebook"]), shape
    books, size, out_group, group = tensors["codebooks"].shape
    if out_group != 1:
        raise CompressError(f"AQLM codewords that span {out_group} outputs cannot be read: only 1")
    if size != 2**bits or tuple(tensors["codes"].shape) != (N, D // group, books) or D % group:
        raise CompressError(f"codes {tuple(tensors['codes'].shape)} and codebooks do not make a {N} × {D} weight")
    codes = tensors["codes"].int()  # from −2^(bits − 1) on, or from 0
    if codes.min() < -(size // 2) or codes.max() >= size:
        raise CompressError(f"codes from {codes.min()} to {codes.max()} reach beyond a codebook of {size} words")
    made = Additive(N, D, books, bits, group)
    codes = codes % size
    made.codes = ops.pack(codes.flatten(1), bits)
    made.codebooks.data = tensors["codebooks"][:, :, 0].half()
    return QuantizedWeight(shape, made, Real.of(tensors["scales"].view(N, 1)))


def settings(name: str, layers: dict[str, nn.Module], plain: list[str]) -> dict[str, Any]:
    kinds = {n: layer.quantized.decode for n, layer in layers.items()}
    values = {
        "nbits_per_codebook": same({n: k.bits for n, k in kinds.items()}, "bits a codebook"),
        "num_codebooks": same({n: k.books for n, k in kinds.items()}, "codebooks"),
        "in_group_size": same({n: k.group for n, k in kinds.items()}, "group"),
    }
    kept = plain + [n.removesuffix(".weight") for n in plain]  # old loaders compare tensors' names, new ones layers'
    return {"quant_method": "aqlm", **values, "out_group_size": 1, "linear_weights_not_to_quantize": kept}
