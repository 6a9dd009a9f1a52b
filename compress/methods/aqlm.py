"""AQLM (arXiv:2401.06118): groups of inputs as sums of learned codewords, codes and codebooks fitted in turn.

The published alternation, with two changes that make it fast and better: codes start from rounding with error feedback
instead of plain nearest words, and codebooks come from conjugate gradients on their exact quadratic instead of Adam.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from compress import additive, ops
from compress.additive import Rows, Sums
from compress.decode import Additive, int8_grid
from compress.errors import CompressError
from compress.feedback import check, damped, inverse_upper
from compress.kmeans import kmeans, nearest
from compress.tables import Real
from compress.transform import Transform
from compress.weight import QuantizedWeight

SLACK = 0.1  # bits a weight that codebooks may cost on top of the target; scales cost 16 bits a row in every shape
POINTS = 64  # a codeword, from which codebooks are first learned ...
ROUNDS = 10  # ... by so many rounds of k-means, and then by `Config.rounds` of rounding with feedback
AT_ONCE = {"cpu": 2**19, "cuda": 2**27}  # candidates compared at a time: what fits a core's cache, or fills a GPU


class Shape(NamedTuple):
    """M codebooks of 2^bits words of `group` inputs."""

    books: int
    bits: int
    group: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """ "2x8g8" -> Shape(2, 8, 8)."""
        found = re.fullmatch(r"(\d+)x(\d+)g(\d+)", text)
        shape = cls(*map(int, found.groups())) if found else None
        if shape is None or not (1 <= shape.books <= 32 and 1 <= shape.bits <= 16 and 1 <= shape.group <= 64):
            raise CompressError(
                f"aqlm has no shape '{text}': write codebooks x bits g inputs as in 2x8g8, with 1 to 32 codebooks of "
                f"1 to 16 bits and groups of 1 to 64"
            )
        return shape

    def bits_of(self, sizes: Sequence[tuple[int, int]], int8: bool) -> float:
        """Bits a weight, everything counted, for matrices of these sizes that share the codebooks."""
        table = self.books * (2**self.bits * self.group * (8 if int8 else 16) + (16 if int8 else 0))
        rows = sum(N * 8 * ops.packed_bytes(-(-D // self.group) * self.books, self.bits) + N * 16 for N, D in sizes)
        return (table + rows) / sum(N * D for N, D in sizes)


# What `Config.bits` chooses from: each shape's mean squared error on Gaussian weights with H = I, measured with this code.
# Sums of several codebooks pay only once a single one of as many bits would cost too much.
SHAPES: dict[str, float] = {
    "1x1g1": 0.3637,
    "1x4g3": 0.2392,
    "1x3g2": 0.2018,
    "1x6g4": 0.1875,
    "1x5g3": 0.1575,
    "1x7g4": 0.1359,
    "1x2g1": 0.1176,
    "1x4g2": 0.1104,
    "1x6g3": 0.1034,
    "1x8g4": 0.09768,
    "2x8g8": 0.09255,
    "1x9g4": 0.06937,
    "1x7g3": 0.06671,
    "1x5g2": 0.05864,
    "1x10g4": 0.04911,
    "1x8g3": 0.04298,
    "1x3g1": 0.03593,
    "1x11g4": 0.03412,
    "1x6g2": 0.03037,
    "1x9g3": 0.02754,
    "1x10g3": 0.01769,
    "1x7g2": 0.01646,
    "1x4g1": 0.01019,
    "1x8g2": 0.0088,
}


@dataclass(frozen=True)
class Config:
    """bits: a weight; the best shape for the sizes at hand is taken, whose codebooks may cost SLACK more.

    shape: "2x8g8", "1x16g8", ...; empty: chosen by `bits`. int8: codebooks of int8. shared: weights that read the same
    input share one set of codebooks. beam: hypotheses kept in the search for codes. rounds: codebooks are first
    learned in so many rounds on some rows. passes: over all codes at most; none follows one that lowers the error by
    less than `tolerance` of it. steps: of conjugate gradients each time. damping: of the Hessian's mean diagonal.
    """

    bits: float = 2.0
    shape: str = ""
    int8: bool = False
    shared: bool = True
    beam: int = 4
    rounds: int = 3
    passes: int = 4
    steps: int = 6
    tolerance: float = 0.01
    damping: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if self.shape:
            Shape.parse(self.shape)
        if not 1 <= self.bits <= 5:
            raise CompressError(f"aqlm takes 1 to 5 bits a weight, not {self.bits}")
        for name, low in {"beam": 1, "rounds": 0, "passes": 0, "steps": 1, "tolerance": 0, "damping": 0}.items():
            if not getattr(self, name) >= low:
                raise CompressError(f"aqlm takes a {name} of {low} or more, not {getattr(self, name)}")

    @classmethod
    def for_bits(cls, bits: float) -> Config:
        """The target with everything counted; see `bits`."""
        return cls(bits=bits)


@torch.no_grad()
def quantize(weights: Sequence[Tensor], hessians: Sequence[Tensor], config: Config) -> list[QuantizedWeight]:
    """An additive weight for each; with `config.shared` their codebooks are one parameter."""
    check(weights, hessians)
    if config.shared:
        return _together(weights, hessians, config)
    return [_together([w], [h], config)[0] for w, h in zip(weights, hessians, strict=True)]


def choose_shape(sizes: Sequence[tuple[int, int]], config: Config) -> Shape:
    """The shape of least error whose codes and codebooks fit `config.bits`, for matrices (N, D) that share codebooks.

    Where even the smallest codebooks cost too much, the shape of the fewest bits.
    """
    if config.shape:
        return Shape.parse(config.shape)
    costs = {name: Shape.parse(name).bits_of(sizes, config.int8) for name in SHAPES}
    scales = 16 * sum(N for N, _ in sizes) / sum(N * D for N, D in sizes)
    fitting = [name for name, bits in costs.items() if bits - scales <= config.bits + SLACK]
    return Shape.parse(min(fitting, key=SHAPES.__getitem__) if fitting else min(costs, key=costs.__getitem__))


def _together(weights: Sequence[Tensor], hessians: Sequence[Tensor], config: Config) -> list[QuantizedWeight]:
    shape = choose_shape([tuple(w.shape) for w in weights], config)
    padding = -weights[0].shape[1] % shape.group
    target = torch.cat([F.pad(w.float(), (0, padding)) for w in weights])
    parts = _parts(weights, hessians, padding, config.damping)
    order = _order(parts, shape.group)  # in which groups of inputs are visited; the file holds them in their own
    inputs = (order[:, None] * shape.group + torch.arange(shape.group, device=order.device)).flatten()
    parts = _each(parts, lambda h: h[inputs[:, None], inputs])
    uppers = [p.hessian for p in _each(parts, inverse_upper)]
    parts = [p._replace(upper=upper) for p, upper in zip(parts, uppers, strict=True)]
    sums = _search(target[:, inputs].contiguous(), parts, shape, config)
    codes, first = sums.codes[:, order.argsort()], None
    made, at = [], 0
    for w in weights:
        own = slice(at, at := at + len(w))
        decode = _decode(codes[own], sums.books, shape, config.int8, first)
        first = first or decode
        made.append(
            QuantizedWeight(tuple(w.shape), decode, Real.of(sums.scale[own, None]), Transform(decode.N, decode.D))
        )
    return made


def _parts(weights: Sequence[Tensor], hessians: Sequence[Tensor], padding: int, damping: float) -> list[Rows]:
    """The output groups of all weights one under the other, their Hessians padded, damped and of mean about 1."""
    stacked, at = [], 0
    for w, h in zip(weights, hessians, strict=True):
        for rows, hessian in ops.output_groups(w, h):
            stacked.append(Rows(at, at := at + len(rows), hessian))
    size = torch.stack([p.hessian.diagonal().mean() for p in stacked]).mean()
    factor = additive.inverse(size)
    return _each(stacked, lambda h: damped(F.pad(h.float() * factor, (0, padding, 0, padding)), damping))


def _each(parts: list[Rows], change: Callable[[Tensor], Tensor]) -> list[Rows]:
    """The parts with changed Hessians; parts of the same Hessian stay so, and it is changed once."""
    made = {_key(p): p.hessian for p in parts}
    made = {key: change(hessian) for key, hessian in made.items()}
    return [p._replace(hessian=made[_key(p)]) for p in parts]


def _key(part: Rows) -> int:
    return part.hessian.data_ptr()


def _order(parts: list[Rows], group: int) -> Tensor:
    """The groups of inputs, those with the largest mean square first: the others can make up for their errors."""
    active = sum(p.hessian.diagonal() for p in parts)
    return active.view(-1, group).sum(1).sort(descending=True, stable=True).indices


def _search(target: Tensor, parts: list[Rows], shape: Shape, config: Config) -> Sums:
    """Codes, codebooks and scales, all of them numbers that the file can hold."""
    chance = torch.Generator().manual_seed(config.seed)
    rows = _at_once(target, 2**shape.bits * (config.beam if shape.books > 1 else 1))
    sums = _first(target, shape, chance)
    few, *some = _sample(target, parts, POINTS * shape.books * 2**shape.bits * shape.group, chance)
    for _ in range(config.rounds):
        learned = additive.start(*some, replace(sums, scale=sums.scale[few]), config.beam, rows)
        sums = replace(sums, books=additive.fit(*some, learned, config.steps).books)
    sums = _refit(target, parts, additive.start(target, parts, sums, config.beam, rows), config)
    error = additive.error(target, parts, sums)
    for _ in range(config.passes):
        better = _refit(target, parts, additive.encode(target, parts, sums, config.beam, rows), config)
        before, error = error, additive.error(target, parts, better)
        if not error < before:
            break
        sums = better
        if error > (1 - config.tolerance) * before:
            break
    return _stored(target, parts, sums, config)


def _at_once(target: Tensor, candidates: int) -> int:
    """Rows to search at a time."""
    return max(64, AT_ONCE.get(target.device.type, AT_ONCE["cpu"]) // candidates)


def _refit(target: Tensor, parts: list[Rows], sums: Sums, config: Config) -> Sums:
    return additive.rescale(target, parts, additive.fit(target, parts, sums, config.steps))


def _first(target: Tensor, shape: Shape, chance: torch.Generator) -> Sums:
    """Codebooks from k-means, each on what those before it left over; no codes yet. Rows count by their mean square."""
    K, N, G = 2**shape.bits, len(target), target.shape[1] // shape.group
    size = target.square().mean(1).sqrt()
    scale = size * additive.inverse(size.mean().sqrt())  # fp16 then holds scales and codewords about equally well
    few = torch.randperm(N * G, generator=chance)[: POINTS * K].to(target.device)
    points = (target * additive.inverse(scale)[:, None]).view(N * G, -1)[few]
    weight = scale.square()[few // G, None]
    books, rows = [], _at_once(target, K)
    for _ in range(shape.books):
        books.append(kmeans(points, weight, K, ROUNDS, chance, rows))
        points = points - books[-1][nearest(points, books[-1], rows)]
    return Sums(torch.stack(books), torch.empty(0, G, shape.books, dtype=torch.int32), scale)


def _sample(
    target: Tensor, parts: list[Rows], weights: int, chance: torch.Generator
) -> tuple[Tensor, Tensor, list[Rows]]:
    """Rows at random that hold about so many weights: which, their target, their parts."""
    N, D = target.shape
    few = torch.randperm(N, generator=chance)[: -(-weights // D)].sort().values
    stops = torch.searchsorted(few, torch.tensor([p.stop for p in parts])).tolist()
    kept = [p._replace(start=a, stop=b) for p, a, b in zip(parts, [0, *stops], stops, strict=False) if a < b]
    few = few.to(target.device)
    return few, target[few], kept


def _stored(target: Tensor, parts: list[Rows], sums: Sums, config: Config) -> Sums:
    """The codebooks and scales as fp16 or int8 hold them."""
    if config.int8:
        whole, step = int8_grid(sums.books)
        sums = replace(sums, books=whole.float() * step.float())
    else:
        sums = replace(sums, books=sums.books.half().float())
    sums = additive.rescale(target, parts, sums)
    return replace(sums, scale=sums.scale.half().float())


def _decode(codes: Tensor, books: Tensor, shape: Shape, int8: bool, first: Additive | None) -> Additive:
    """codes: (N, G, M). books: as `_stored` left them. first: whose codebooks to share, if any."""
    made = Additive(len(codes), codes.shape[1] * shape.group, *shape, int8=int8)
    made.codes = ops.pack(codes.flatten(1), shape.bits)
    if first is not None:
        made.codebooks, made.step = first.codebooks, first.step
    elif int8:
        made.codebooks.data, made.step.data = int8_grid(books)
    else:
        made.codebooks.data = books.half()
    return made
