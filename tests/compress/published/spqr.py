"""SpQR (arXiv:2306.03078, Algorithm 1) step by step as published: plain, slow, the measure for the fast one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Result(NamedTuple):
    """weight: what it decodes to; outliers: which weights are kept in fp16. Both (N, D)."""

    weight: Tensor
    outliers: Tensor


def fit_quantizer(m: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and zero from the least and greatest of each row of m (rows, β)."""
    low, high = m.min(1).values, m.max(1).values
    s = ((high - low) / (2**bits - 1)).clamp(min=1e-9)
    return s, -low / s


def quantize(m: Tensor, s: Tensor, z: Tensor, bits: int) -> Tensor:
    return torch.floor(m / s[:, None] + z[:, None] + 0.5).clamp(0, 2**bits - 1)


def dequantize(q: Tensor, s: Tensor, z: Tensor) -> Tensor:
    return s[:, None] * (q - z[:, None])


def error(w: Tensor, s: Tensor, z: Tensor, bits: int, diagonal: Tensor) -> Tensor:
    """(rows,): the squared errors of a group, each over the square of its diagonal entry."""
    return ((w - dequantize(quantize(w, s, z, bits), s, z)) / diagonal).square().sum(1)


def outliers(w: Tensor, bits: int, diagonal: Tensor, threshold: float) -> Tensor:
    """Leave each weight of a group out of the fit in turn: those that spoil it by more than the threshold."""
    found = torch.zeros_like(w, dtype=torch.bool)
    base = error(w, *fit_quantizer(w, bits), bits, diagonal)
    for i in range(w.shape[1]):
        others = [j for j in range(w.shape[1]) if j != i]
        s, z = fit_quantizer(w[:, others], bits)
        found[:, i] = base - error(w[:, others], s, z, bits, diagonal[others]) > threshold
    return found


def second_level(values: Tensor, bits: int, rows: int) -> Tensor:
    """What the statistics of `rows` rows together decode to once they are quantized themselves."""
    blocks = torch.nn.functional.pad(values[None], (0, -len(values) % rows), mode="replicate")[0].view(-1, rows)
    s, z = fit_quantizer(blocks, bits)
    return dequantize(quantize(blocks, s, z, bits), s, z).flatten()[: len(values)]


def fit_statistics(w: Tensor, spoils: Tensor, bits: int, stat_bits: int, rows: int) -> tuple[Tensor, Tensor]:
    """The group's scale and zero without its outliers (their place takes the mean of the rest), quantized."""
    mean = (w * ~spoils).sum(1) / (~spoils).sum(1).clamp(min=1)
    s, z = fit_quantizer(torch.where(spoils, mean[:, None], w), bits)
    return second_level(s, stat_bits, rows), second_level(z, stat_bits, rows)


def spqr(
    weight: Tensor, hessian: Tensor, bits: int, group: int, stat_bits: int, rows: int, tau: float, damping: float
) -> Result:
    """weight (N, D), hessian (D, D); D divisible by group. tau: of the mean of var(W) over the squared diagonal."""
    W, D = weight.clone(), weight.shape[1]
    H = hessian + damping * hessian.diagonal().mean() * torch.eye(D)
    Hic = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)
    diagonal = Hic.diagonal()
    threshold = (tau * (W.var(0) / diagonal.square()).mean()).item()
    out, kept = torch.zeros_like(W), torch.zeros_like(W, dtype=torch.bool)
    for i in range(0, D, group):
        here = slice(i, i + group)
        spoils = outliers(W[:, here], bits, diagonal[here], threshold)
        s, z = fit_statistics(W[:, here], spoils, bits, stat_bits, rows)
        for j in range(i, i + group):
            w = W[:, j : j + 1]
            rounded = dequantize(quantize(w, s, z, bits), s, z)
            kept[:, j] = ((w - rounded) / diagonal[j]).square()[:, 0] > threshold
            out[:, j] = torch.where(kept[:, j], w.half().float()[:, 0], rounded[:, 0])
            E = (W[:, j] - out[:, j]) / diagonal[j]
            W[:, j + 1 :] -= E[:, None] * Hic[j, j + 1 :]
    return Result(out, kept)
