"""Trellis codes (QTIP, arXiv:2406.11235): weights made Gaussian by Hadamard transforms, Viterbi with error feedback.

Knows tensors and Hessians; knows no model. Letters: N outputs, D inputs, K new bits a weight, L bits of the window,
C = N / BAND chains, S = 2^L states.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress import ops
from compress.decode import BAND, QUAD, Trellis, from_chains, to_chains
from compress.errors import CompressError
from compress.feedback import check, damped, feed, inverse_upper
from compress.luts import WINDOWS, default_lut
from compress.methods.rtn import fp16
from compress.tables import Real
from compress.transform import Transform
from compress.viterbi import Viterbi
from compress.weight import QuantizedWeight

PART = BAND * QUAD  # steps of a chain in one quad of inputs, which are decided together
BLOCK = 128  # inputs whose errors reach the inputs after them in one product
LANES = 128  # chains that a CPU searches at once: what they cost stays in its cache
SPREAD = 1.05  # targets are wider than the weights by what earlier errors add; measured at 2 bits
SLACK = 1 / 32  # of padding, at most, for a larger Hadamard block


@dataclass(frozen=True)
class Config:
    """bits: 2, 3 or 4 a weight, or a half between: then about half of the weights of a block take a bit more.

    window: bits of a state, 6, 7 or 8; its table has 64, 128 or 256 entries. rounds: of encoding and fitting table and
    scales, the best is kept. lookahead: steps into the next inputs that a decision sees. damping: of the mean diagonal.
    """

    bits: float = 2.0
    window: int = 8
    rounds: int = 1
    lookahead: int = 32
    damping: float = 0.03  # 0.01 loses up to 1 % more on other text, 0.1 up to 3 % more on the calibration text
    seed: int = 0

    def __post_init__(self) -> None:
        if self.bits not in (2, 2.5, 3, 3.5, 4):
            raise CompressError(f"trellis takes 2, 2.5, 3, 3.5 or 4 bits a weight, not {self.bits}")
        if self.window not in WINDOWS:
            raise CompressError(f"trellis has windows of {', '.join(map(str, WINDOWS))} bits, not {self.window}")
        if self.rounds < 1 or not 0 <= self.lookahead <= PART or not self.damping >= 0:
            raise CompressError(
                f"trellis takes 1 or more rounds, a look-ahead of 0 to {PART} and a damping of 0 or more, "
                f"not {self.rounds}, {self.lookahead} and {self.damping}"
            )

    @classmethod
    def for_bits(cls, bits: float) -> Config:
        """Halves: see `steps_for`."""
        return cls(bits=bits)


class Feedback(NamedTuple):
    """gain: (D, D), how an error changes later weights (see `feed`); cost: (D,), of a squared error after that."""

    gain: Tensor
    cost: Tensor

    @classmethod
    def of(cls, hessian: Tensor) -> Feedback:
        """hessian: (D, D), damped. Errors are fed on from quad to quad."""
        upper = inverse_upper(hessian)
        quads = torch.arange(len(upper), device=upper.device).view(-1, QUAD)
        corners = upper[quads[:, :, None], quads[:, None]]  # (D/QUAD, QUAD, QUAD)
        cost = torch.cholesky_inverse(corners, upper=True).diagonal(dim1=1, dim2=2).flatten()
        return cls(feed(upper, QUAD), cost)


@dataclass
class Rows:
    """Outputs with one Hessian, in the space of the codes: what they should be and how they are coded so far."""

    target: Tensor  # (n, D), n divisible by BAND
    hessian: Tensor  # (D, D), damped: a fit to few tokens would forget all others
    feedback: Feedback
    scale: Tensor  # (n,), fp16 values as fp32
    states: Tensor | None = None  # (n/BAND, BAND · D) uint8

    def coded(self, lut: Tensor) -> Tensor:
        """(n, D): what the states and scales stand for."""
        return from_chains(lut[self.states.int()], self.target.shape[1]) * self.scale[:, None]

    def error(self, lut: Tensor) -> Tensor:
        """tr(E H Eᵀ)."""
        return ops.weighted_error(self.target - self.coded(lut), self.hessian[None])


@torch.no_grad()
def quantize(weights: Sequence[Tensor], hessians: Sequence[Tensor], config: Config) -> list[QuantizedWeight]:
    """Random signs and block Hadamard on both sides, a scale a row, one learned table for weights of the same bits.

    N and D are padded to a multiple of BAND at least: (N' D') / (N D) − 1 of the bits.
    """
    check(weights, hessians)
    steps, known, made = steps_for(weights, hessians, config.bits), {}, {}
    sides = [_transform(w, h, config.seed) for w, h in zip(weights, hessians, strict=True)]
    for step in sorted(set(steps)):
        chosen = [i for i, own in enumerate(steps) if own == step]
        rows = [_rows(weights[i].float(), hessians[i], sides[i], config.damping, known) for i in chosen]
        lut = search([r for part in rows for r in part], step, config)
        table = nn.Parameter(lut.half())
        made |= {i: _weight(weights[i], sides[i], part, table, step) for i, part in zip(chosen, rows, strict=True)}
    return [made[i] for i in range(len(weights))]


def steps_for(weights: Sequence[Tensor], hessians: Sequence[Tensor], bits: float) -> list[int]:
    """The whole bits of each weight. For a half between, those take one more that hold most output energy a weight, as
    long as they are at most half of all together; one on its own takes more if it has more inputs than outputs (of a
    transformer block that is `down`, the most sensitive).
    """
    low = int(bits)
    if low == bits:
        return [low] * len(weights)
    if len(weights) == 1:
        return [low + (weights[0].shape[1] > weights[0].shape[0])]
    energy = [
        ops.weighted_error(w.float(), h.float()).item() / w.numel() for w, h in zip(weights, hessians, strict=True)
    ]
    steps, room = [low] * len(weights), sum(w.numel() for w in weights) / 2
    for i in sorted(range(len(weights)), key=lambda i: -energy[i]):
        if weights[i].numel() <= room:
            steps[i], room = low + 1, room - weights[i].numel()
    return steps


def padded(n: int) -> int:
    """A multiple of 128, 64 or 32 above n if that costs little, else of BAND."""
    sizes = (math.ceil(n / block) * block for block in (128, 64, 32))
    return next((size for size in sizes if size - n <= n * SLACK), math.ceil(n / BAND) * BAND)


def _transform(w: Tensor, hessian: Tensor, seed: int) -> Transform:
    """Weights of as many inputs get the same signs there. Output blocks stay inside the groups that share a Hessian."""
    (N, D), Q = w.shape, len(hessian)
    N, D, group = padded(N) if Q == 1 else math.ceil(N / BAND) * BAND, padded(D), N // Q if N % Q == 0 else 1
    out_block = ops.power_of_two_in(N if Q == 1 else math.gcd(N, group))
    return Transform.random(N, D, ops.power_of_two_in(D), out_block, seed).to(w.device)


def _rows(w: Tensor, hessians: Tensor, side: Transform, damping: float, known: dict) -> list[Rows]:
    """The rows of each output group; a band across a border takes the mean of the Hessians.

    known: what was made of Hessians, by their tensor's identity and their output groups.
    """
    target, made, sizes = side.weight(w), [], [len(part) for part, _ in ops.output_groups(w, hessians)]
    group = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    group = F.pad(group, (0, side.N - len(group)), value=len(sizes) - 1).view(-1, BAND)
    spans, counts = torch.unique_consecutive(group[:, [0, -1]], dim=0, return_counts=True)
    for (first, last), part in zip(spans.tolist(), target.split((counts * BAND).tolist()), strict=True):
        key = id(hessians), first, last
        if key not in known:
            hessian = damped(side.hessian(hessians[first : last + 1].float().mean(0)), damping)
            known[key] = hessian, Feedback.of(hessian)
        made.append(Rows(part, *known[key], fp16(part.square().mean(1).sqrt() * SPREAD)))
    return made


def _weight(w: Tensor, side: Transform, rows: list[Rows], table: nn.Parameter, step: int) -> QuantizedWeight:
    decode = Trellis(side.N, side.D, step, len(table).bit_length() - 1).to(w.device)
    decode.codes, decode.lut = stream(torch.cat([r.states for r in rows]), step, decode.window), table
    return QuantizedWeight(tuple(w.shape), decode, Real.of(torch.cat([r.scale for r in rows])[:, None]), side)


def stream(states: Tensor, step: int, window: int) -> Tensor:
    """The bytes of a `Trellis` whose windows are `states`. states: (C, T); returns (C, bytes) uint8."""
    low, rest = states.int() & (1 << step) - 1, states[:, -1:].int() >> step
    count = math.ceil((window - step) / step)  # codes that hold the bits of the last window which no later one shows
    tail = rest >> torch.arange(count, device=states.device) * step & (1 << step) - 1
    packed = ops.pack(torch.cat((low, tail), 1), step)
    return packed[:, : ops.packed_bytes(states.shape[1] * step + window - step, 1)].contiguous()


def search(rows: Sequence[Rows], step: int, config: Config) -> Tensor:
    """Encode and fit in turn; leaves the best states and scales in `rows` and returns the table (S,) that goes with them."""
    lut = default_lut(config.window, step).to(rows[0].target.device)
    best, kept = math.inf, None
    for _ in range(config.rounds):
        encode_(rows, lut, step, config.lookahead)
        lut = fit(rows, lut)
        error = sum(r.error(lut) for r in rows).item()
        if error < best:
            best, kept = error, (lut, [(r.states, r.scale) for r in rows])
    assert kept is not None, "errors are finite"
    for r, (states, scale) in zip(rows, kept[1], strict=True):
        r.states, r.scale = states, scale
    return kept[0]


def encode_(rows: Sequence[Rows], lut: Tensor, step: int, lookahead: int) -> None:
    """`encode` for all `rows`, those with one Hessian together: a search over many chains costs little more than one."""
    together: dict[int, list[Rows]] = {}
    for r in rows:
        together.setdefault(id(r.feedback), []).append(r)
    for same in together.values():
        target, scale = torch.cat([r.target for r in same]), torch.cat([r.scale for r in same])
        states = encode(target, same[0].feedback, lut, scale, step, lookahead)
        for r, own in zip(same, states.split([len(r.target) // BAND for r in same]), strict=True):
            r.states = own


def encode(target: Tensor, feedback: Feedback, lut: Tensor, scale: Tensor, step: int, lookahead: int = 32) -> Tensor:
    """States whose scale · lut[state] has a small error under the feedback's Hessian: (n/BAND, BAND · D) uint8.

    target: (n, D), n and D divisible by BAND; scale: (n,). Outputs are independent, so any bands may come alone.
    """
    bands = len(target) // BAND
    parts = math.ceil(bands / LANES) if target.device.type == "cpu" else 1
    sizes = [len(part) * BAND for part in torch.arange(bands).tensor_split(parts)]
    rows = zip(target.split(sizes), scale.split(sizes), strict=True)
    return torch.cat([_encode(part, feedback, lut, own, step, lookahead) for part, own in rows])


def _encode(target: Tensor, feedback: Feedback, lut: Tensor, scale: Tensor, step: int, lookahead: int) -> Tensor:
    """LDLQ over quads of inputs: one search each, from the state in which the last ended, a little beyond its end."""
    (N, D), C = target.shape, len(target) // BAND
    w, states = target.T.clone(), torch.empty(D // QUAD, PART, C, dtype=torch.uint8, device=target.device)
    dear, own = feedback.cost[:, None] / feedback.cost.mean(), scale.square() / scale.square().mean()
    inner, final = (Viterbi(lut, step, PART + more, C) for more in (lookahead, 0))
    end = None
    for first in range(0, D, BLOCK):
        last = min(first + BLOCK, D)
        errors = w.new_empty(last - first, N)
        for j in range(first, last, QUAD):
            now, viterbi = slice(j, j + 2 * QUAD), inner if j + QUAD < D else final
            aim, cost = (_in_order(part)[: viterbi.T] for part in (w[now] / scale, dear[now] * own))
            found = viterbi.paths(aim, cost, end)[:PART]
            end, states[j // QUAD] = found[-1], found
            chosen = lut[found].view(BAND, QUAD, C).permute(1, 2, 0).reshape(QUAD, N) * scale
            error = torch.sub(w[j : j + QUAD], chosen, out=errors[j - first : j - first + QUAD])
            near = slice(j + QUAD, last + QUAD)  # what the next searches of this block see
            w[near].addmm_(feedback.gain[j : j + QUAD, near].T, error, alpha=-1)
        w[last + QUAD :].addmm_(feedback.gain[first:last, last + QUAD :].T, errors, alpha=-1)
    return states.view(-1, C).T.contiguous()


def _in_order(columns: Tensor) -> Tensor:
    """(quads · QUAD, N) -> (quads · PART, C): the order of a chain."""
    return columns.unflatten(0, (-1, QUAD)).unflatten(2, (-1, BAND)).permute(0, 3, 1, 2).flatten(0, 2)


def fit(rows: Sequence[Rows], lut: Tensor, iterations: int = 2) -> Tensor:
    """The table (S,) that lowers Σ tr(E H Eᵀ) for the states of `rows`, rounded to fp16; updates their scales too.

    The error is quadratic in the table: conjugate gradients from `lut`, preconditioned by the diagonal.
    """

    def gather(values: list[Tensor]) -> Tensor:
        """Sums of what each entry of the table decodes to. values: (n, D) for each rows."""
        return sum(
            _by_state(r.states, to_chains(v * r.scale[:, None]), len(lut)) for r, v in zip(rows, values, strict=True)
        )

    mass = gather([r.scale[:, None] * r.hessian.diagonal() for r in rows])
    slope = gather([(r.target - r.coded(lut)) @ r.hessian for r in rows])  # −½ gradient
    ahead, inverse = torch.zeros_like(lut), torch.where(mass > 0, 1 / mass, 0)
    before = torch.zeros(())
    for _ in range(iterations):
        turned = inverse * slope
        now = slope @ turned
        ahead = turned + (now / before if before > 0 else 0) * ahead
        curved = gather([r.coded(ahead) @ r.hessian for r in rows])
        bend = ahead @ curved
        if not (now > 0 and bend > 0):
            break
        lut, slope, before = lut + now / bend * ahead, slope - now / bend * curved, now
    lut = lut.half().float()
    for r in rows:
        r.scale = _best_scale(r, lut)
    return lut


def _best_scale(rows: Rows, lut: Tensor) -> Tensor:
    """(n,): s = ⟨w, ŵ⟩_H / ⟨ŵ, ŵ⟩_H of each output, as fp16 holds it."""
    shape = rows.coded(lut) / rows.scale[:, None]
    turned = shape @ rows.hessian
    energy = (turned * shape).sum(1)
    return torch.where(energy > 0, fp16((turned * rows.target).sum(1) / energy), rows.scale)


def _by_state(states: Tensor, values: Tensor, S: int) -> Tensor:
    """(S,) sums of the values at each state. Whole numbers add up alike in any order, so a GPU repeats itself."""
    unit = values.abs().max().clamp(min=1e-30) / 2**30
    whole = (values / unit).round().long().flatten()
    sums = torch.zeros(S, dtype=torch.int64, device=values.device).index_add_(0, states.flatten().int(), whole)
    return sums.float() * unit
