"""SpQR (arXiv:2306.03078): small groups with quantised scales and zeros, and the few weights that spoil them in fp16.

Letters: N outputs, D inputs, G groups, g inputs of a group, S statistics (a scale or a zero for each row of a group).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from compress import ops
from compress.decode import Grid
from compress.errors import CompressError
from compress.feedback import TINIEST, arrange_each, check, costs, round_group, sweep
from compress.methods.rtn import fp16, whole_groups
from compress.tables import TwoLevel
from compress.transform import Transform
from compress.weight import QuantizedWeight, Sparse

FOR_BITS = {
    2: {"bits": 2, "group": 64, "rows": 64, "threshold": math.inf},
    2.5: {"bits": 2, "group": 32, "rows": 32, "threshold": 1.6},
    3: {"bits": 2, "group": 16, "threshold": 1.2},
    4: {},
}


@dataclass(frozen=True)
class Config:
    """bits: 1 to 8. group: inputs that share a scale and a zero, themselves of stat_bits bits; `rows` outputs share the
    fp16 scale and zero of these. The defaults are the one format that other SpQR readers take.

    threshold: a weight whose rounding costs more than this part of what dropping an average weight would is an outlier
    and takes 32 bits; infinity for none. act_order: stores 32 bits an input. damping: of the mean diagonal. seed:
    nothing here is random.
    """

    bits: int = 3
    group: int = 16
    stat_bits: int = 3
    rows: int = 16
    threshold: float = 0.3
    act_order: bool = False
    damping: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if not (1 <= self.bits <= 8 and 1 <= self.stat_bits <= 8 and self.group > 0 and self.rows > 0):
            raise CompressError(f"spqr takes 1 to 8 bits, groups and rows above 0, not {self}")
        if not (self.threshold > 0 and self.damping >= 0):
            raise CompressError(f"spqr takes a threshold above 0 and a damping of 0 or more, not {self}")

    @classmethod
    def for_bits(cls, bits: float) -> Config:
        """4: the published 3 bits in groups of 16: 3.6, and about 3.9 with the outliers of Gaussian weights (more weights
        are outliers where tails are heavy). 3: 2 bits in groups of 16, about 2.9; 2.5: groups of 32, about 2.5; 2:
        groups of 64 and no outliers, 2.1.
        """
        if bits not in FOR_BITS:
            raise CompressError(f"spqr has settings for {', '.join(map(str, FOR_BITS))} bits a weight, not {bits}")
        return cls(**FOR_BITS[bits])


class Stats(NamedTuple):
    """Scales or zeros: second · (code − offset), as the file holds them. codes (..., N); the others (..., N / rows)."""

    codes: Tensor
    second: Tensor
    offset: Tensor

    def values(self, rows: int) -> Tensor:
        """(..., N)"""
        N = self.codes.shape[-1]
        second, offset = (t.repeat_interleave(rows, -1)[..., :N] for t in self[1:])
        return second * (self.codes - offset)

    def table(self, bits: int, rows: int) -> TwoLevel:
        """For stats (G, N)."""
        G, N = self.codes.shape
        made = TwoLevel(N, G, bits, rows)
        made.codes = ops.pack(self.codes.T.int(), bits)
        made.scale.data, made.zero.data = self.second.T.half(), self.offset.T.half()
        return made


def second_level(values: Tensor, bits: int, rows: int) -> Stats:
    """The grid from the least to the greatest of each `rows` neighbouring values. values: (..., N)."""
    N = values.shape[-1]
    blocks = torch.cat((values, values[..., -1:].expand(*values.shape[:-1], -N % rows)), -1).unflatten(-1, (-1, rows))
    low, high = blocks.amin(-1), blocks.amax(-1)
    narrowest = torch.maximum(-low, high) / 1024  # the offset has to fit fp16 with some bits to spare
    second = fp16(torch.maximum((high - low) / (2**bits - 1), narrowest))
    offset = (-low / second).half().float()
    codes = torch.addcdiv(offset[..., None], blocks, second[..., None]).round_().clamp_(0, 2**bits - 1)
    return Stats(codes.flatten(-2)[..., :N], second, offset)


class Problem(NamedTuple):
    """One group: the weights as they are now (g, N), what a squared error costs (g, 1 or N), what an outlier does."""

    now: Tensor
    cost: Tensor
    limit: Tensor
    top: int  # the greatest code

    def loss(self, scale: Tensor, zero: Tensor) -> Tensor:
        """(..., N): what each output's group costs, no weight more than an outlier. scale, zero: (..., N)."""
        scale, zero = scale[..., None, :], zero[..., None, :]
        q = torch.addcmul(zero, self.now, inverse(scale)).round_().clamp_(0, self.top)
        return q.sub_(zero).mul_(scale).sub_(self.now).square_().mul_(self.cost).clamp_(max=self.limit).sum(-2)


def inverse(scale: Tensor) -> Tensor:
    """1 / scale, and 0 for scales that are none."""
    return torch.where(scale.abs() < TINIEST, 0, 1 / scale)


def leave_one_out(group: Problem) -> tuple[Tensor, Tensor]:
    """The best scale and zero (N,) from the least to the greatest weight, either of them or both left out.

    A fit from the least to the greatest is spoilt by those two alone, so these four are all that the published test,
    which leaves out each of the g weights in turn, can find.
    """
    least, greatest = group.now.min(0, keepdim=True), group.now.max(0, keepdim=True)
    second = group.now.scatter(0, least.indices, torch.inf).amin(0, keepdim=True)
    last = group.now.scatter(0, greatest.indices, -torch.inf).amax(0, keepdim=True)
    low = torch.cat((least.values, least.values, second, second)).clamp_(max=0)
    high = torch.cat((greatest.values, last, greatest.values, last)).clamp_(min=0)
    scale = ((high - low) / group.top).clamp_(min=TINIEST)
    zero = -low / scale
    best = group.loss(scale, zero).min(0, keepdim=True).indices  # argmin is ten times slower
    return scale.gather(0, best)[0], zero.gather(0, best)[0]


def statistics(group: Problem, config: Config) -> tuple[Stats, Stats]:
    """Scales and zeros of a group, quantised: of the codes next to those of the real ones, the pair that costs least."""
    scale, zero = leave_one_out(group)
    scales = second_level(scale, config.stat_bits, config.rows)
    middle = group.top / 2  # the grid's middle stays where it was, whatever its scale was rounded to
    moved = middle - (middle - zero) * scale * inverse(scales.values(config.rows))
    zeros = second_level(moved.clamp_(-1, group.top + 1), config.stat_bits, config.rows)
    near = torch.arange(-1, 2, device=scale.device)
    scales, zeros = (
        s._replace(codes=(s.codes + shape).clamp_(0, 2**config.stat_bits - 1))
        for s, shape in ((scales, near.view(3, 1, 1)), (zeros, near.view(1, 3, 1)))
    )
    loss = group.loss(scales.values(config.rows), zeros.values(config.rows)).flatten(0, 1)  # (9, N)
    best = loss.min(0, keepdim=True).indices
    return (
        scales._replace(codes=scales.codes[:, 0].gather(0, best // 3)[0]),
        zeros._replace(codes=zeros.codes[0].gather(0, best % 3)[0]),
    )


@torch.no_grad()
def quantize(weights: Sequence[Tensor], hessians: Sequence[Tensor], config: Config) -> list[QuantizedWeight]:
    """A grid weight with two-level statistics and outliers for each."""
    check(weights, hessians)
    sizes = [math.prod(whole_groups(w.shape[1], config.group)) for w in weights]
    arranged = arrange_each(hessians, sizes, config.damping, config.act_order)
    return [_one(w.float(), order, upper, config) for w, (order, upper) in zip(weights, arranged, strict=True)]


def _one(w: Tensor, order: Tensor, upper: Tensor, config: Config) -> QuantizedWeight:
    (N, D), (G, g) = w.shape, whole_groups(w.shape[1], config.group)
    columns = Transform(N, G * g).weight(w).T[order]  # (D', N)
    codes, outliers, scales, zeros = _sweep(columns, costs(upper, N), upper, g, config)
    decode = Grid(N, G * g, config.bits, zeros.table(config.stat_bits, config.rows))
    decode.codes = ops.pack(codes.T.int(), config.bits)
    transform = Transform(N, G * g, permuted=config.act_order).to(w.device)
    if config.act_order:
        transform.order = order.int()
    sparse = Sparse.of(outliers[order.argsort()].T[:, :D]) if config.threshold < math.inf else None
    return QuantizedWeight((N, D), decode, scales.table(config.stat_bits, config.rows), transform, sparse)


def _sweep(columns: Tensor, cost: Tensor, upper: Tensor, g: int, config: Config) -> tuple[Tensor, Tensor, Stats, Stats]:
    """Codes and outliers (D', N), scales and zeros (G, N)."""
    limit = config.threshold * (columns.square().mean(1, keepdim=True) * cost).mean().clamp(min=1e-30)
    reach, top = (limit / cost).sqrt(), 2**config.bits - 1  # an error beyond its reach makes an outlier
    fitted = []

    def choose(first: int, now: Tensor) -> Tensor:
        here = slice(first, first + g)
        fitted.append(statistics(Problem(now, cost[here], limit, top), config))
        scale, zero = (stats.values(config.rows) for stats in fitted[-1])
        return round_group(now, upper[:, here, here], scale, zero, top, reach[here])

    chosen = sweep(columns, upper, choose, g).unflatten(0, (-1, g))  # (G, g, N)
    scales, zeros = (Stats(*map(torch.stack, zip(*stats, strict=True))) for stats in zip(*fitted, strict=True))
    scale, zero = (stats.values(config.rows)[:, None] for stats in (scales, zeros))
    codes = torch.addcmul(zero, chosen, inverse(scale)).round_().clamp_(0, top)
    lost = chosen - (codes - zero) * scale  # rounding noise, or beyond the reach
    outliers = lost * (lost.abs() > reach.unflatten(0, (-1, g)) / 2)
    return codes.flatten(0, 1), outliers.flatten(0, 1), scales, zeros
