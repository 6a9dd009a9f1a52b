"""What the GPU's kernels are measured beside: layers of aqlm, spqr_quant and gemlite where they are installed. See bench_gpu.py.

They are no dependencies. aqlm and spqr_quant compile themselves at first use, for which they want nvcc; gemlite searches for
its launches at the first product of a shape on a card that it does not know, which takes it some 20 seconds. Knows no
kernel of ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RIGHT = 0.005  # what a relative error may be: gemlite adds parts of a sum in fp16, .0017 off with 4096 inputs
ROWS = 1024  # of spqr_quant's that are packed, on the CPU; a weight repeats them
INSTALL = {"aqlm": "'aqlm[gpu]'", "spqr_quant": "'spqr_quant[gpu]'", "gemlite": "gemlite"}


@dataclass(frozen=True)
class Rival:
    """layer: (B, D) fp16 -> (B, N) fp16. dense: (N, D) fp64, what its codes stand for."""

    layer: nn.Module
    dense: Tensor

    def bytes(self) -> int:
        return sum(t.nbytes for t in (*self.layer.parameters(), *self.layer.buffers()))


def rivals(N: int, D: int) -> dict[str, Callable[[], Rival]]:
    """A name and what makes it, random numbers on the GPU, of the packages that are installed. It raises what they raise."""
    made = {f"aqlm {m}x{bits} g8": partial(aqlm, N, D, m, bits) for m, bits in ((1, 8), (2, 8), (1, 16))}
    made |= {f"spqr_quant 3-bit 1 % {s}": partial(spqr_quant, N, D, s) for s in ("csr", "ptcsr")}
    made |= {f"gemlite A16W{bits} g128": partial(gemlite, N, D, bits) for bits in (2, 3, 4)}
    return {name: make for name, make in made.items() if find_spec(name.split()[0])}


def missing() -> list[str]:
    """A line for each package that is not installed."""
    return [f"{name} is not installed: pip install {how}" for name, how in INSTALL.items() if not find_spec(name)]


def scales(*shape: int) -> Tensor:
    """From 0.5 to 1.5."""
    return 0.5 + torch.rand(shape, device="cuda")


def aqlm(N: int, D: int, books: int, bits: int) -> Rival:
    """Sums of words of 8 weights. Up to 6 tokens are products of vectors, more decode the weight for cuBLAS."""
    from aqlm import QuantizedLinear
    from aqlm.utils import _dequantize_weight, unpack_int_data

    layer = QuantizedLinear(D, N, 8, 1, books, bits, bias=False, device="cuda", dtype=torch.float16)
    layer.codes.random_(-(2 ** (bits - 1)), 2 ** (bits - 1))
    layer.codebooks.normal_()
    layer.scales.copy_(scales(N, 1, 1, 1) / D**0.5)
    codes = unpack_int_data(layer.codes, bits)
    return Rival(layer, _dequantize_weight(codes, layer.codebooks.double(), layer.scales.double()))


def gemlite(N: int, D: int, bits: int) -> Rival:
    """A grid with a scale and a zero for 128 inputs."""
    from gemlite import DType, GemLiteLinear

    layer = GemLiteLinear(bits, 128, D, N, DType.FP16, DType.FP16)
    codes = torch.randint(2**bits, (N, D // 128, 128), dtype=torch.uint8, device="cuda")
    zero = torch.randint(2**bits, (N, D // 128, 1), device="cuda").half()
    scale = (scales(N, D // 128, 1) / 2**bits / D**0.5).half()
    layer.pack(codes.view(N, D), scale, zero)
    return Rival(layer, ((codes.double() - zero) * scale).view(N, D))


class Spqr(nn.Module):
    """spqr_quant's forward, a product for each token, without waiting for the GPU after each, so that a graph can hold it."""

    def __init__(self, weight: nn.Module) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        from spqr_quant.inference import FeatureFlags, call_spqr_mul

        w, y = self.weight, x.new_empty(len(x), self.weight.m)
        sizes, parts = (w.m, w.n, w.bits, w.beta1, w.beta2), (w.dense_weights, w.row_offsets, w.col_vals, w.nnz)
        for one, out in zip(x, y, strict=True):
            call_spqr_mul(*sizes, *parts, one, int(FeatureFlags.SPARSE_FUSED_FP32_ASYNC), out, out)
        return y


def spqr_quant(N: int, D: int, storage: str) -> Rival:
    """A grid of 3 bits whose scales and zeros of 16 inputs have 3 too, outliers as `storage` keeps them."""
    from spqr_quant.inference import QuantizedLinear

    part, times = spqr_rows(math.gcd(N, ROWS), D, storage), N // math.gcd(N, ROWS)
    starts = part.row_offsets[:-1] + part.row_offsets[-1] * torch.arange(times)[:, None]
    starts = F.pad(starts.flatten(), (0, 1), value=times * part.nnz).int()
    repeated = (part.dense_weights.repeat(times), starts, part.col_vals.repeat(times))
    layer = QuantizedLinear(N, D, part.bits, part.beta1, part.beta2, *repeated, None)
    return Rival(Spqr(layer).cuda(), part.dequantize().cuda().double().repeat(times, 1))


def spqr_rows(R: int, D: int, storage: str) -> nn.Module:
    """spqr_quant's layer of R rows on the CPU: a hundredth of it outliers, some times as large as the rest."""
    from spqr_quant.inference import ModelArgs, QuantizedLinear, SparseStorageConfiguration, SPQRLegacy

    assert R % 16 == 0 and D % 16 == 0, f"{R} rows of {D} inputs are no tiles of 16"
    codes = torch.randint(8, (R, D), dtype=torch.int8)
    first = torch.randint(8, (2, R * D // 16), dtype=torch.int8)  # scales and zeros
    unit, ones = (0.5 + torch.rand(R * D // 256)) / 16 / D**0.5, torch.ones(R * D // 256)
    second = [t.half() for t in (unit, -ones, ones, 0 * ones)]  # scale = unit * (code + 1), zero = its code
    there = torch.rand(R, D) < 0.01
    starts = F.pad(there.sum(1).cumsum(0), (1, 0)).int()
    outliers = (torch.randn(int(starts[-1])) * 4 / D**0.5).half()
    legacy = SPQRLegacy(R, D, 3, codes, 16, 16, *first, *second, starts, there.nonzero()[:, 1].short(), outliers, None)
    return QuantizedLinear.from_legacy(legacy, ModelArgs(3, 16, 16, SparseStorageConfiguration(storage)), "cpu")
