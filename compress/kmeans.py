"""Weighted k-means and the nearest-codeword search it shares with the beam search. Knows points; knows no weight."""

from __future__ import annotations

import torch
from torch import Tensor

SEGMENT = 4096  # candidates whose index fits the low 12 bits of a float: errors are then compared to 1 part in 2,000


def least(errors: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` least of each row and where they are, the least first; `errors` is overwritten.

    errors: (n, L) fp32. Returns two (n, count); values are cut to 11 bits or more. The index travels in the low bits of
    the value, since a plain minimum is ten times as fast as one that returns its place.
    """
    n, width = errors.shape
    if width > SEGMENT:
        return _least_of_segments(errors, count)
    mask = (1 << max(width - 1, 1).bit_length()) - 1
    places = torch.arange(width, dtype=torch.int32, device=errors.device)
    errors.view(torch.int32).bitwise_and_(~mask).bitwise_or_(places)
    found = []
    for left in range(count, 0, -1):
        best = errors.amin(1, keepdim=True)
        found.append(best)
        if left > 1:
            errors.scatter_(1, (best.view(torch.int32) & mask).long(), torch.inf)
    values = torch.cat(found, 1)
    return values, (values.view(torch.int32) & mask).long()


def _least_of_segments(errors: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`least` for many candidates: one for each segment of 256, then the least of those."""
    n, width = errors.shape
    padded = torch.nn.functional.pad(errors, (0, -width % 256), value=torch.inf).view(-1, 256)
    value, place = (t.view(n, -1) for t in least(padded, 1))
    value, segment = value.topk(count, largest=False)
    return value, segment * 256 + place.gather(1, segment)


def kmeans(points: Tensor, weights: Tensor, K: int, steps: int, chance: torch.Generator, rows: int) -> Tensor:
    """K centroids (K, g) that make Σ weights · (point − centroid)² small. points, weights: (n, g) fp32.

    A centroid that no point chooses moves to a point chosen at random. rows: points compared at a time.
    """
    centroids = points[_choose(len(points), K, chance).to(points.device)].clone()
    for _ in range(steps):
        index = assign(points, weights, centroids, rows)
        mass = torch.zeros_like(centroids).index_add_(0, index, weights)
        total = torch.zeros_like(centroids).index_add_(0, index, weights * points)
        fresh = points[_choose(len(points), K, chance).to(points.device)]
        used = torch.zeros(K, 1, device=points.device).index_fill_(0, index, 1) > 0
        centroids = torch.where(used, torch.where(mass > 0, total / mass, centroids), fresh)
    return centroids


def assign(points: Tensor, weights: Tensor, centroids: Tensor, rows: int) -> Tensor:
    """(n,) the nearest centroid of each point under its own diagonal weights."""
    table = torch.cat((centroids.square(), -2 * centroids), 1).T.contiguous()  # (2g, K)
    found = []
    for p, w in zip(points.split(rows), weights.split(rows), strict=True):
        constant = (w * p * p).sum(1, keepdim=True)
        found.append(least(torch.cat((w, w * p), 1) @ table + constant, 1)[1][:, 0])
    return torch.cat(found)


def _choose(n: int, K: int, chance: torch.Generator) -> Tensor:
    """K indices below n: distinct where there are enough."""
    return torch.randperm(n, generator=chance)[:K] if n >= K else torch.randint(n, (K,), generator=chance)
