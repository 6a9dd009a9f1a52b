"""GPTQ (arXiv:2210.17323): uniform grids, each input's rounding error fed back into the inputs after it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.errors import CompressError
from compress.feedback import arrange_each, check, costs, round_group, sweep
from compress.methods.rtn import Levels, fit, grid_for, on_grid, whole_groups
from compress.transform import Transform
from compress.weight import QuantizedWeight


@dataclass(frozen=True)
class Config:
    """bits, group, symmetric, search: as for rtn, the squared errors weighted by what they cost after feedback.

    act_order: inputs with the largest activations first. static_groups: groups are neighbours in the weight and their
    grids are fitted before the sweep, so that no permutation is stored; else they are neighbours in the order (GPTQ's
    g_idx, 32 bits an input in the file) and fitted on the weights as the errors before them have moved them. Without
    act_order static_groups only fits too early. damping: of the mean diagonal. seed: nothing here is random.
    """

    bits: int = 4
    group: int = 128
    symmetric: bool = False
    search: int = 32
    act_order: bool = True
    static_groups: bool = True
    damping: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8 or self.group < 0 or self.search < 0:
            raise CompressError(
                f"gptq takes 1 to 8 bits, groups and a search of 0 or more, not {self.bits}, {self.group} and {self.search}"
            )
        if not self.damping >= 0:
            raise CompressError(f"gptq takes a damping of 0 or more, not {self.damping}")

    @classmethod
    def for_bits(cls, bits: float) -> Config:
        """Whole bits: groups of 128, 2.14, 3.15 and 4.16 with scales and zeros. Halves: groups of 32, 2.5 is 2.56."""
        return cls(**grid_for(bits, "gptq"))


@torch.no_grad()
def quantize(weights: Sequence[Tensor], hessians: Sequence[Tensor], config: Config) -> list[QuantizedWeight]:
    """A grid weight for each, the same order of inputs for all weights of one Hessian."""
    check(weights, hessians)
    sizes = [math.prod(whole_groups(w.shape[1], config.group)) for w in weights]
    arranged = arrange_each(hessians, sizes, config.damping, config.act_order)
    return [_one(w.float(), order, upper, config) for w, (order, upper) in zip(weights, arranged, strict=True)]


def _one(w: Tensor, order: Tensor, upper: Tensor, config: Config) -> QuantizedWeight:
    N, (G, g) = len(w), whole_groups(w.shape[1], config.group)
    stored = config.act_order and not config.static_groups
    transform = Transform(N, G * g, permuted=stored)
    if stored:
        transform.order = order.int()
    columns = Transform(N, G * g).weight(w).T[order]  # (D', N)
    codes, scale, zero = (_static if config.static_groups else _in_order)(columns, order, upper, g, config)
    return on_grid(w.shape, codes.T, scale.T, None if config.symmetric else zero.T, config.bits, transform)


Rounded = tuple[Tensor, Tensor, Tensor]  # codes (D', N), scale and zero (G, N)


def _in_order(columns: Tensor, order: Tensor, upper: Tensor, g: int, config: Config) -> Rounded:
    """Groups of neighbours in the order, each fitted when its turn comes, on the weights as they are then."""
    cost, codes, fitted = costs(upper, columns.shape[1]), torch.empty_like(columns), []

    def choose(first: int, now: Tensor) -> Tensor:
        here = slice(first, first + g)
        levels = fit(now, config.bits, config.symmetric, config.search, cost[here])
        chosen = round_group(now, upper[:, here, here], levels.scale, levels.zero, 2**config.bits - 1)
        codes[here] = levels.codes(chosen)
        fitted.append(levels)
        return chosen

    sweep(columns, upper, choose, g)
    return codes, torch.stack([f.scale for f in fitted]), torch.stack([f.zero for f in fitted])


def _static(columns: Tensor, order: Tensor, upper: Tensor, g: int, config: Config) -> Rounded:
    """Groups of neighbours in the weight, all fitted first."""
    back, codes = order.argsort(), torch.empty_like(columns)
    groups, cost = (t[back].unflatten(0, (-1, g)) for t in (columns, costs(upper, columns.shape[1])))
    levels = fit(groups, config.bits, config.symmetric, config.search, cost)
    scale, zero = levels.scale[order // g], levels.zero[order // g]  # (D', N)

    def nearest(j: int, column: Tensor) -> Tensor:
        here = Levels(scale[j], zero[j], config.bits)
        codes[j] = here.codes(column)
        return here.decode(codes[j][None])

    sweep(columns, upper, nearest)
    return codes[back], levels.scale, levels.zero
