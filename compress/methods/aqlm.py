"""AQLM (arXiv:2401.06118): groups of inputs as sums of learned codewords, codes and codebooks fitted in turn.

The published alternation, with two changes that make it fast and better: codes start from rounding with error feedback
instead of plain nearest words, and codebooks come from conjugate gradients on their exact quadratic instead of Adam.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from compress import additive, ops
from compress.additive import Rows, Sums
from compress.decode import Additive
from compress.errors import CompressError
from compress.feedback import check, damped, inverse_upper
from compress.kmeans import assign, kmeans
from compress.tables import Real
from compress.transform import Transform
from compress.weight import QuantizedWeight

SLACK = 0.1  # bits a weight by which what a shape costs, everything counted, may exceed the target
SAMPLE = 64  # points a codeword from which codebooks are first learned
AT_ONCE = {"cpu": 2**18, "cuda": 2**27}  # candidates compared at a time: fits a core's cache, or fills a GPU


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

    def promise(self) -> float:
        """About the mean squared error on Gaussian weights: larger codebooks waste less of their bits."""
        waste = 1.43 + 0.8 / self.bits
        return waste * 4 ** -(self.books * self.bits / self.group)


SHAPES = tuple(Shape(M, B, 8) for B in (8, 7, 6, 5, 4, 3, 2) for M in range(1, 17))


@dataclass(frozen=True)
class Config:
    """bits: a weight, with what codebooks and scales cost on top at most SLACK; the best shape for the size is taken.

    shape: "2x8g8", "1x16g8", ...; empty: chosen by `bits`. int8: codebooks as int8. shared: weights that read the same
    input share one set of codebooks. beam: hypotheses kept in the search. passes: over codes and codebooks at most;
    ends earlier once one lowers the error by less than `tolerance` of it. steps: of conjugate gradients in each.
    damping: of the mean diagonal.
    """

    bits: float = 2.0
    shape: str = ""
    int8: bool = False
    shared: bool = True
    beam: int = 4
    passes: int = 6
    steps: int = 6
    tolerance: float = 0.01
    damping: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if self.shape:
            Shape.parse(self.shape)
        if not 1 <= self.bits <= 8:
            raise CompressError(f"aqlm takes 1 to 8 bits a weight, not {self.bits}")
        for name, low in {"beam": 1, "passes": 0, "steps": 1, "tolerance": 0, "damping": 0}.items():
            if getattr(self, name) < low:
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
    """The shape that promises the least error within the bits for matrices (N, D) that share codebooks."""
    if config.shape:
        return Shape.parse(config.shape)
    fitting = [s for s in SHAPES if s.bits_of(sizes, config.int8) <= config.bits + SLACK]
    if not fitting:
        fewest = min(s.bits_of(sizes, config.int8) for s in SHAPES)
        raise CompressError(
            f"a weight of {sizes[0]} takes {fewest:.2f} bits or more as aqlm, not {config.bits}: name a shape"
        )
    return min(fitting, key=Shape.promise)


def _together(weights: Sequence[Tensor], hessians: Sequence[Tensor], config: Config) -> list[QuantizedWeight]:
    shape = choose_shape([tuple(w.shape) for w in weights], config)
    padding = -weights[0].shape[1] % shape.group
    target = torch.cat([F.pad(w.float(), (0, padding)) for w in weights])
    parts = list(_parts(weights, hessians, padding, config.damping))
    sums = _search(target, parts, shape, config)
    sums = _settled(target, parts, sums, config)
    books = torch.nn.Parameter(sums.books.half())
    made, at = [], 0
    for w in weights:
        own = slice(at, at := at + len(w))
        made.append(_weight(tuple(w.shape), books, sums.codes[own], sums.scale[own], shape, config.int8))
    return made


def _parts(weights: Sequence[Tensor], hessians: Sequence[Tensor], padding: int, damping: float) -> Iterator[Rows]:
    """The output groups of all weights one under the other."""
    at, ready = 0, {}
    for w, h in zip(weights, hessians, strict=True):
        if id(h) not in ready:
            ready[id(h)] = damped(F.pad(h.float(), (0, padding, 0, padding)), damping)
        for rows, hessian in ops.output_groups(w, ready[id(h)]):
            yield Rows(at, at := at + len(rows), hessian)


def _search(target: Tensor, parts: list[Rows], shape: Shape, config: Config) -> Sums:
    sums = _learned(target, parts, shape, config)
    rows = max(64, AT_ONCE.get(target.device.type, 2**18) // (config.beam * 2**shape.bits))
    uppers = _uppers(parts)
    sums = additive.start(target, parts, uppers, sums, config.beam, rows)
    best, least = sums, additive.error(target, parts, sums)
    for _ in range(config.passes):
        sums = additive.fit(target, parts, sums, config.steps)
        sums = additive.rescale(target, parts, sums)
        sums = additive.encode(target, parts, sums, config.beam, rows)
        found = additive.error(target, parts, sums)
        if not found < least:
            break
        enough = found > (1 - config.tolerance) * least
        best, least = sums, found
        if enough:
            break
    return best


def _uppers(parts: list[Rows]) -> list[Tensor]:
    """`inverse_upper` of each part's Hessian, once where parts hold the very same."""
    ready = {}
    for part in parts:
        key = part.hessian.data_ptr()
        if key not in ready:
            ready[key] = inverse_upper(part.hessian)
    return [ready[part.hessian.data_ptr()] for part in parts]


def _learned(target: Tensor, parts: list[Rows], shape: Shape, config: Config) -> Sums:
    """First codebooks: k-means on what the codebooks before left over, each input weighted by its mean square."""
    chance = torch.Generator().manual_seed(config.seed)
    K, (N, D), g = 2**shape.bits, target.shape, shape.group
    scale = target.square().mean(1).sqrt()  # codewords are then about 1: safe in fp16
    inputs = torch.cat([p.hessian.diagonal().expand(p.stop - p.start, -1) for p in parts])
    weights = (inputs * scale.square()[:, None]).view(-1, g)
    points = (target * additive.inverse(scale)[:, None]).view(-1, g)
    few = torch.randperm(len(points), generator=chance)[: SAMPLE * K].to(points.device)
    points, weights = points[few], weights[few] / weights.mean()
    books = []
    rows = AT_ONCE.get(target.device.type, 2**18) // K
    for _ in range(shape.books):
        books.append(kmeans(points, weights, K, 10, chance, rows))
        points = points - books[-1][assign(points, weights, books[-1], rows)]
    codes = torch.zeros(N, D // g, shape.books, dtype=torch.int32, device=target.device)
    return Sums(torch.stack(books), codes, scale)


def _settled(target: Tensor, parts: list[Rows], sums: Sums, config: Config) -> Sums:
    """Codebooks and scales as the file holds them, the codes searched once more for these."""
    sums = replace(sums, books=int8_grid(sums.books) if config.int8 else sums.books.half().float())
    sums = additive.rescale(target, parts, sums)
    return replace(sums, scale=sums.scale.half().float())


def int8_grid(books: Tensor) -> Tensor:
    """The nearest multiples, -127 to 127, of a step a codebook that has 4 significant bits: all exact in fp16."""
    mantissa, exponent = torch.frexp(books.abs().amax((1, 2), keepdim=True) / 127)
    step = torch.ldexp((mantissa * 16).ceil(), exponent - 4)
    return (books * additive.inverse(step)).round() * step


def _weight(
    size: tuple[int, int], books: torch.nn.Parameter, codes: Tensor, scale: Tensor, shape: Shape, int8: bool
) -> QuantizedWeight:
    N, D = len(codes), codes.shape[1] * shape.group
    decode = Additive(N, D, *shape, int8=int8)
    decode.codes = ops.pack(codes.flatten(1), shape.bits)
    decode.codebooks = books
    return QuantizedWeight(size, decode, Real.of(scale[:, None]), Transform(N, D))
