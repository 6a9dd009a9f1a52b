"""k-means, and the search for the least of many errors that it shares with the search for codes. Knows points only."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn import functional as F

WIDEST = 4096  # candidates whose index fits the low 12 bits of an fp32 number: errors then compare to 1 part in 2,000
SEGMENT = 256


def least(errors: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` least of each row, the least first, and where they are. `errors` is overwritten.

    errors: (n, L) fp32. Returns two (n, count); the values are cut to 11 bits or more. The index travels in the low
    bits of the value: a plain minimum takes a tenth of the time of one that also returns its place.
    """
    if errors.shape[1] > WIDEST:
        return _least_of_segments(errors, count)
    mask = (1 << max(errors.shape[1] - 1, 1).bit_length()) - 1
    places = torch.arange(errors.shape[1], dtype=torch.int32, device=errors.device)
    errors.view(torch.int32).bitwise_and_(~mask).bitwise_or_(places)
    found = []
    for left in range(count, 0, -1):
        found.append(errors.amin(1, keepdim=True))
        if left > 1:
            errors.scatter_(1, (found[-1].view(torch.int32) & mask).long(), torch.inf)
    values = found[0] if count == 1 else torch.cat(found, 1)
    return values, (values.view(torch.int32) & mask).long()


def _least_of_segments(errors: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`least` for many candidates: the best of each segment, and the least of those."""
    beyond = torch.finfo(errors.dtype).max  # an infinity with an index in its low bits is not a number
    padded = F.pad(errors, (0, -errors.shape[1] % SEGMENT), value=beyond).view(-1, SEGMENT)
    value, place = (t.view(len(errors), -1) for t in least(padded, 1))
    value, segment = value.topk(count, largest=False)
    return value, segment * SEGMENT + place.gather(1, segment)


def uses(index: Tensor, K: int) -> Tensor:
    """(K, n) sparse: `uses(index, K) @ values` sums the rows of values (n, g) by index (n,), in the same order always."""
    small = torch.uint8 if K <= 256 else torch.int16 if K <= 2**15 else torch.int32  # the fewer bytes the faster sorted
    order = index.to(small).sort(stable=True).indices
    index = index.long()
    counts = index.new_zeros(K).index_add_(0, index, torch.ones_like(index))  # bincount would wait for a GPU
    starts = F.pad(counts.cumsum(0), (1, 0))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR")  # "in beta state"
        ones = torch.ones(len(index), device=index.device)
        return torch.sparse_csr_tensor(starts, order, ones, (K, len(index)), check_invariants=False)


def nearest(points: Tensor, centroids: Tensor, rows: int) -> Tensor:
    """(n,) the centroid nearest to each point (n, g). rows: points compared at a time."""
    table = torch.cat((-2 * centroids, centroids.square().sum(1, keepdim=True)), 1).T  # (g + 1, K)
    found = []
    for p in points.split(rows):
        size = p.square().sum(1, keepdim=True)  # makes a value an error: small, so that `least` compares finely
        found.append(least((torch.cat((p, torch.ones_like(size)), 1) @ table).add_(size), 1)[1][:, 0])
    return torch.cat(found)


def kmeans(points: Tensor, weight: Tensor, K: int, steps: int, chance: torch.Generator, rows: int) -> Tensor:
    """K centroids (K, g) for points (n, g) of weight (n, 1) each, from K of them chosen at random.

    A centroid that no point chooses moves to a point chosen at random. rows: points compared at a time.
    """
    chosen = torch.stack([_some(len(points), K, chance) for _ in range(1 + steps)]).to(points.device)
    centroids = points[chosen[0]]
    for some in chosen[1:]:
        where = uses(nearest(points, centroids, rows), K)
        mass = where @ weight
        centroids = torch.where(mass > 0, (where @ (weight * points)) / mass, points[some])
    return centroids


def _some(n: int, K: int, chance: torch.Generator) -> Tensor:
    """K indices below n, distinct where n allows."""
    return torch.randperm(n, generator=chance)[:K] if n >= K else torch.randint(n, (K,), generator=chance)
