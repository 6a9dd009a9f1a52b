"""AQLM (arXiv:2401.06118, Algorithm 1) step by step as published: plain, slow, the measure for the fast one."""

from __future__ import annotations

import torch
from torch import Tensor

EPOCHS, STEPS, ITERATIONS = 1000, 100, 100
RATE, BETAS = 1e-4, (0.0, 0.95)


def kmeans(points: Tensor, K: int, chance: torch.Generator) -> Tensor:
    """K centroids from K of the points; looks every ten iterations whether they still move."""
    centroids = points[torch.randperm(len(points), generator=chance)[:K]]
    for iteration in range(ITERATIONS):
        index = torch.cdist(points, centroids).argmin(1)
        counts = torch.bincount(index, minlength=K)[:, None]
        sums = torch.zeros_like(centroids).index_add_(0, index, points)
        moved = torch.where(counts > 0, sums / counts.clamp(min=1), centroids)
        if iteration % 10 == 9 and torch.allclose(moved, centroids, rtol=1e-6):
            return moved
        centroids = moved
    return centroids


def residual_kmeans(points: Tensor, M: int, K: int, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each codebook on what those before it left over: codebooks (M, K, g) and codes (n, M)."""
    books, codes = [], []
    for _ in range(M):
        books.append(kmeans(points, K, chance))
        codes.append(torch.cdist(points, books[-1]).argmin(1))
        points = points - books[-1][codes[-1]]
    return torch.stack(books), torch.stack(codes, 1)


def dense(books: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """(N, D) from codes (N, G, M)."""
    return scale * sum(book[codes[..., m]] for m, book in enumerate(books)).flatten(1)


def loss(weight: Tensor, made: Tensor, hessian: Tensor) -> Tensor:
    lost = weight - made
    return (lost @ hessian * lost).sum() / len(weight)


def beam_search(
    weight: Tensor, hessian: Tensor, books: Tensor, codes: Tensor, scale: Tensor, chance: torch.Generator
) -> Tensor:
    """Beam 1: groups in random order, codebooks in order; the whole product with H again for each choice."""
    g, codes = books.shape[2], codes.clone()
    for j in torch.randperm(codes.shape[1], generator=chance).tolist():
        own = slice(j * g, (j + 1) * g)
        for m, book in enumerate(books):
            without = weight - dense(books, codes, scale)
            without[:, own] += scale * book[codes[:, j, m]]
            cross = scale * (without @ hessian[:, own] @ book.T)  # (N, K)
            square = scale.square() * (book @ hessian[own, own] * book).sum(1)
            codes[:, j, m] = (square - 2 * cross).argmin(1)
    return codes


def aqlm(
    weight: Tensor, hessian: Tensor, M: int, bits: int, g: int, seed: int = 0, tolerance: float = 0.01
) -> tuple[Tensor, int]:
    """What the weight (N, D) decodes to, D divisible by g, and the epochs it took. hessian: (D, D)."""
    weight, hessian, chance = weight.double(), hessian.double(), torch.Generator().manual_seed(seed)
    scale = weight.norm(dim=1, keepdim=True) + 1e-9
    books, codes = residual_kmeans((weight / scale).view(-1, g), M, 2**bits, chance)
    codes = codes.view(len(weight), -1, M)
    books.requires_grad_(), scale.requires_grad_()
    adam, before = torch.optim.Adam([books, scale], lr=RATE, betas=BETAS, amsgrad=True), torch.inf
    for epoch in range(1, EPOCHS + 1):  # noqa: B007  returned
        for _ in range(STEPS):
            adam.zero_grad()
            loss(weight, dense(books, codes, scale), hessian).backward()
            adam.step()
        with torch.no_grad():
            codes = beam_search(weight, hessian, books, codes, scale, chance)
            found = loss(weight, dense(books, codes, scale), hessian).item()
        if (before - found) / before < tolerance:
            break
        before = found
    return dense(books, codes, scale).detach().float(), epoch
