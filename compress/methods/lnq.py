"""LNQ (GuidedQuant, arXiv:2505.07004): each row has levels of its own, fitted in turn with the codes under the Hessian.

Letters: N outputs, D inputs, K levels of a row, Q output groups. Everything lies columns first: (D, N) and (K, N).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress import ops
from compress.decode import Lut
from compress.errors import CompressError
from compress.feedback import arrange, check, costs, damped, descend, sweep
from compress.weight import QuantizedWeight

LLOYD = 30  # iterations of k-means
RIDGE = 1e-4  # of a row's mean curvature: what holds a level that no weight uses where it is
AT_ONCE = 2**26  # one-hot numbers that a fit of levels holds in memory


@dataclass(frozen=True)
class Config:
    """bits: 1 to 6, 2^bits fp16 levels a row. rounds: fits of the levels, each followed by `cycles` passes over the codes.

    damping: of the mean diagonal. seed: nothing here is random.
    """

    bits: int = 3
    rounds: int = 3
    cycles: int = 4
    damping: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 6 or min(self.rounds, self.cycles, self.damping) < 0:
            raise CompressError(f"lnq takes 1 to 6 bits, and rounds, cycles and damping of 0 or more, not {self}")

    @classmethod
    def for_bits(cls, bits: float) -> Config:
        """2, 3 or 4, and 16 · 2^bits / D for the levels: 0.06, 0.13 and 0.25 at 1,024 inputs. No halves."""
        if bits not in (2, 3, 4):
            raise CompressError(f"lnq gives every weight 2, 3 or 4 whole bits, not {bits}")
        return cls(int(bits))


@torch.no_grad()
def quantize(weights: Sequence[Tensor], hessians: Sequence[Tensor], config: Config) -> list[QuantizedWeight]:
    """Rows of free levels for each weight."""
    check(weights, hessians)
    uppers: dict[int, Tensor] = {}
    made = []
    for w, h in zip(weights, hessians, strict=True):
        if id(h) not in uppers:
            _, uppers[id(h)] = arrange(h.float(), w.shape[1], config.damping, act_order=False)
        made.append(_one(w.float(), damped(h.float(), config.damping), uppers[id(h)], config))
    return made


def _one(w: Tensor, hessian: Tensor, upper: Tensor, config: Config) -> QuantizedWeight:
    N, D = w.shape
    codes, levels = fit(w.T.contiguous(), hessian, upper, config)
    decode = Lut(N, D, config.bits, rows=N).to(w.device)
    decode.codes, decode.levels.data = ops.pack(codes.T.int(), config.bits), levels.T.half().contiguous()
    return QuantizedWeight((N, D), decode)


def fit(columns: Tensor, hessian: Tensor, upper: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Codes (D, N) and levels (K, N). hessian, upper: (Q, D, D). Error feedback first, then rounds of descent."""
    levels = kmeans(columns.T, costs(upper, columns.shape[1]).T, 2**config.bits).T.contiguous()
    codes = torch.zeros_like(columns, dtype=torch.int64)

    def nearest(j: int, now: Tensor) -> Tensor:
        codes[j] = (now > (levels[1:] + levels[:-1]) / 2).sum(0)
        return levels.gather(0, codes[j][None])

    sweep(columns, upper, nearest)
    for _ in range(config.rounds):
        levels = least_squares(columns, codes, levels, hessian)
        chosen = levels.gather(0, codes)
        levels = levels.sort(0).values
        for _ in range(config.cycles):
            chosen = descend(columns, chosen, hessian, nearest)
    return codes, least_squares(columns, codes, levels, hessian)


def kmeans(rows: Tensor, mass: Tensor, K: int) -> Tensor:
    """Lloyd's algorithm on each row of numbers. rows: (N, D); mass: (N or 1, D) >= 0. Returns (N, K), sorted, as fp16."""
    values, order = rows.contiguous().sort(1)
    mass = mass.expand_as(rows).gather(1, order)
    zero = torch.zeros_like(values[:, :1])
    masses = torch.cat((zero, mass.cumsum(1)), 1)  # (N, D + 1), of all values before
    moments = torch.cat((zero, (mass * values).cumsum(1)), 1)
    quantile = (torch.arange(K, device=rows.device) + 0.5) / K * rows.shape[1]
    levels = values[:, quantile.long()].contiguous()
    for _ in range(LLOYD):
        middles = ((levels[:, 1:] + levels[:, :-1]) / 2).contiguous()
        cut = torch.searchsorted(values, middles)  # (N, K - 1)
        cut = torch.cat((torch.zeros_like(cut[:, :1]), cut, torch.full_like(cut[:, :1], rows.shape[1])), 1)
        total, moment = masses.gather(1, cut).diff(), moments.gather(1, cut).diff()
        levels = torch.where(total > 0, moment / total, levels).sort(1).values
    return levels.half().float()


def least_squares(columns: Tensor, codes: Tensor, levels: Tensor, hessian: Tensor) -> Tensor:
    """The levels with the least tr(E H Eᵀ) for given codes, as fp16: a K × K system for each row. Returns (K, N)."""
    Q, K = len(hessian), len(levels)
    groups = zip(*(t.tensor_split(Q, 1) for t in (columns, codes, levels)), hessian, strict=True)
    some = max(1, AT_ONCE // (len(columns) * K))  # rows at a time
    fitted = [
        _levels(*part, matrix)
        for *tensors, matrix in groups
        for part in zip(*(t.split(some, 1) for t in tensors), strict=True)
    ]
    return torch.cat(fitted, 1)


def _levels(columns: Tensor, codes: Tensor, levels: Tensor, hessian: Tensor) -> Tensor:
    (D, N), K = columns.shape, len(levels)
    one_hot = torch.nn.functional.one_hot(codes, K).to(columns)  # (D, N, K)
    pulled = (hessian @ one_hot.view(D, N * K)).view(D, N, K)
    curvature = one_hot.permute(1, 2, 0) @ pulled.permute(1, 0, 2)  # (N, K, K)
    wanted = (pulled * columns[..., None]).sum(0)  # (N, K)
    hold = RIDGE * curvature.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-30)  # (N,)
    system = curvature + torch.diag_embed(hold[:, None].expand(N, K))
    return torch.linalg.solve(system, wanted + hold[:, None] * levels.T).T.half().float()
