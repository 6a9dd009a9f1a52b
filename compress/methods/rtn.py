"""Round to nearest: a uniform grid for each row and group, no calibration. The fit of a grid, for all who use one.

Letters: N outputs, D inputs, G groups along the inputs, g inputs of a group. Grids are fitted columns first: (g, N).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from compress import ops
from compress.decode import Grid
from compress.errors import CompressError
from compress.feedback import TINIEST, check
from compress.tables import Real, Whole
from compress.transform import Transform
from compress.weight import QuantizedWeight

NARROWEST = 0.3  # of the range from least to greatest, at which the search for a better grid ends


@dataclass(frozen=True)
class Config:
    """bits: 1 to 8. group: inputs that share a scale, 0 for the whole row; it shrinks a little where that saves padding.

    symmetric: no zeros, levels −2^(bits−1) … 2^(bits−1)−1. search: how many narrower grids to try by squared error,
    0 for the grid from the least to the greatest weight. seed: nothing here is random.
    """

    bits: int = 4
    group: int = 128
    symmetric: bool = False
    search: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8 or self.group < 0 or self.search < 0:
            raise CompressError(
                f"rtn takes 1 to 8 bits, groups and a search of 0 or more, not {self.bits}, {self.group} and {self.search}"
            )

    @classmethod
    def for_bits(cls, bits: float) -> Config:
        """Whole bits: groups of 128, 2.14, 3.15 and 4.16 with scales and zeros. Halves: groups of 32, 2.5 is 2.56."""
        return cls(**grid_for(bits, "rtn"))


def grid_for(bits: float, name: str) -> dict[str, int]:
    """bits and group of a grid that takes about `bits` bits a weight."""
    if bits * 2 % 1 or not 1 <= bits <= 8:
        raise CompressError(f"{name} takes whole or half bits from 1 to 8 a weight, not {bits}")
    return {"bits": int(bits), "group": 32 if bits % 1 else 128}


class Levels(NamedTuple):
    """scale · (code − zero), code in [0, 2^bits): scale and zero (..., N), in what the file can hold."""

    scale: Tensor
    zero: Tensor
    bits: int

    def codes(self, values: Tensor) -> Tensor:
        """The nearest codes, as floats. values: (..., g, N)."""
        q = values / self.scale[..., None, :] + self.zero[..., None, :]
        return q.round_().clamp_(0, 2**self.bits - 1)

    def decode(self, codes: Tensor) -> Tensor:
        return (codes - self.zero[..., None, :]) * self.scale[..., None, :]


def fp16(scale: Tensor) -> Tensor:
    """Scales as the file holds them, never zero."""
    return scale.half().float().clamp(min=TINIEST)


def extent(values: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest of each group, zero included. values: (..., g, N); returns (..., N) twice."""
    return values.amin(-2).clamp(max=0), values.amax(-2).clamp(min=0)


def fit(values: Tensor, bits: int, symmetric: bool, search: int, importance: Tensor | None = None) -> Levels:
    """The grid with the least Σ importance · error² among `search` narrower ones and zeros one off.

    values: (..., g, N). importance: (..., g, 1), what a squared error at each input costs; None for 1.
    """
    low, high = extent(values)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    best = _levels(low, high, bits, symmetric)
    if search == 0:
        return best
    least = torch.full_like(low, torch.inf)
    for part in torch.linspace(1, NARROWEST, search).tolist():
        for shift in (0,) if symmetric else (0, -1, 1):
            tried = _levels(part * low, part * high, bits, symmetric, shift)
            loss = (tried.decode(tried.codes(values)) - values).square_()
            loss = (loss if importance is None else loss * importance).sum(-2)
            better, least = loss < least, torch.minimum(loss, least)
            best = Levels(*(torch.where(better, new, old) for new, old in zip(tried[:2], best[:2], strict=True)), bits)
    return best


def _levels(low: Tensor, high: Tensor, bits: int, symmetric: bool, shift: int = 0) -> Levels:
    top = 2**bits - 1
    scale = fp16((high - low) / top)
    if symmetric:
        return Levels(scale, torch.full_like(scale, 2 ** (bits - 1)), bits)
    return Levels(scale, (-low / scale + shift).round_().clamp_(0, top), bits)


def whole_groups(D: int, group: int) -> tuple[int, int]:
    """(G, g): as many groups as `group` inputs each would need, of equal size, so that padding is below G inputs."""
    G = -(-D // (group or D))
    return G, -(-D // G)


def on_grid(
    shape: Sequence[int], codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int, transform: Transform
) -> QuantizedWeight:
    """codes (N, D') integers; scale, zero (N, G), zero None for a symmetric grid."""
    decode = Grid(*codes.shape, bits, None if zero is None else Whole.of(zero.int(), bits).to(codes.device))
    decode.codes = ops.pack(codes.int(), bits)
    return QuantizedWeight(tuple(shape), decode, Real.of(scale), transform.to(codes.device))


@torch.no_grad()
def quantize(weights: Sequence[Tensor], hessians: Sequence[Tensor], config: Config) -> list[QuantizedWeight]:
    """Each weight rounded to its nearest grid point. The Hessians are looked at for their shape alone."""
    check(weights, hessians)
    return [_one(w.float(), config) for w in weights]


def _one(w: Tensor, config: Config) -> QuantizedWeight:
    N, D = w.shape
    G, g = whole_groups(D, config.group)
    transform = Transform(N, G * g).to(w.device)
    values = transform.weight(w).T.reshape(G, g, N)
    levels = fit(values, config.bits, config.symmetric, config.search)
    codes = levels.codes(values).flatten(0, 1).T
    zero = None if config.symmetric else levels.zero.T
    return on_grid(w.shape, codes, levels.scale.T, zero, config.bits, transform)
