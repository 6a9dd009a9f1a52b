"""Sums of codewords under a quadratic error: search the codes, fit the codebooks and scales (AQLM, arXiv:2401.06118).

    error = tr((W − Ŵ) H (W − Ŵ)ᵀ),   Ŵ[n, j-th group] = scale[n] · Σ_m books[m, codes[n, j, m]]

Letters as in `compress.ops`; M codebooks of K words of g inputs. The inner loops do not wait for the device.
Knows tensors; knows no file, no layer, no bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from compress.feedback import sweep
from compress.kmeans import least, uses

BLOCK = 128  # inputs whose share of the residual is kept up to date; the others' is computed when they are reached


Map = Callable[[Tensor], Tensor]


class Rows(NamedTuple):
    """Rows [start, stop) of the target with their Hessian (D, D); for `start` its `feedback.inverse_upper` too."""

    start: int
    stop: int
    hessian: Tensor
    upper: Tensor | None = None


@dataclass(frozen=True)
class Sums:
    """books (M, K, g) fp32, codes (N, G, M) int32, scale (N,) fp32."""

    books: Tensor
    codes: Tensor
    scale: Tensor

    def dense(self) -> Tensor:
        """(N, D) fp32."""
        return self.scale[:, None] * words(self.books, self.codes)


def words(books: Tensor, codes: Tensor) -> Tensor:
    """(N, D): the sums of codewords, before the scale."""
    M, K, g = books.shape
    table = torch.arange(M, dtype=torch.int32, device=codes.device) * K
    return F.embedding_bag((codes + table).view(-1, M), books.reshape(M * K, g), mode="sum").view(len(codes), -1)


def error(target: Tensor, parts: Sequence[Rows], sums: Sums) -> Tensor:
    """The objective: a scalar tensor."""
    lost = target - sums.dense()
    return sum((lost[a:b] @ h * lost[a:b]).sum() for a, b, h, _ in parts)


def search(
    pull: Tensor, metric: Tensor, books: Tensor, codes: Tensor | None, beam: int, nothing: Tensor | None = None
) -> Tensor:
    """Codes (n, M) that make w metric wᵀ − 2 w · pull small, w the sum of their words. The primitive of `encode`.

    pull: (n, g); for the nearest words to points t it is t @ metric. metric: (g, g). codes: (n, M) to start from, whose
    value is not exceeded (but by rounding); without, words are added one by one. Each codebook is visited once, with
    the `beam` best hypotheses kept. nothing: (n,) the value of no words at all, if not 0: the nearer to 0 the least value
    of a row comes to lie, the finer it is compared. Values from `codes` are 0 where they start.
    """
    n, (M, K, g) = len(pull), books.shape
    pushes = books @ metric
    costs = (pushes * books).sum(2, keepdim=True)  # (M, K, 1)
    tables = torch.cat((-2 * books, costs, torch.ones_like(costs)), 2).mT  # (M, g + 2, K): state @ table = value
    moves = F.pad(-pushes, (0, 2))
    value = pull.new_zeros(n, 1) if nothing is None else nothing[:, None]
    state = torch.cat((pull, pull.new_ones(n, 1), value), 1)  # what is left to pull, 1, the value so far
    chosen = pull.new_zeros(n, 1, M, dtype=torch.long)
    if codes is not None:
        chosen = codes.long()[:, None]
        for m in range(M):
            state = state + moves[m].index_select(0, chosen[:, 0, m])
    state = state[:, None]  # (n, hypotheses, g + 2)
    for m in range(M):
        if codes is not None:
            state = _without(state, books[m], moves[m], costs[m], chosen[..., m].flatten())
        values = (state.view(-1, g + 2) @ tables[m]).view(n, -1)
        value, place = least(values, min(beam, values.shape[1]) if m < M - 1 else 1)
        if state.shape[1] > 1:
            parent, code = (place // K)[..., None], place % K
            state = state.gather(1, parent.expand(-1, -1, g + 2))
            chosen = chosen.gather(1, parent.expand(-1, -1, M))
        else:
            code, chosen = place, chosen.expand(-1, place.shape[1], -1).clone()
        chosen[..., m] = code
        state = state + moves[m].index_select(0, code.flatten()).view(n, -1, g + 2)
        state[..., -1] = value
    return chosen[:, 0].int()


def _without(state: Tensor, book: Tensor, moves: Tensor, costs: Tensor, code: Tensor) -> Tensor:
    """The state with one word taken out: the value so far is then what the other words are worth."""
    n, b, width = state.shape
    word, move = book.index_select(0, code), moves.index_select(0, code)
    state = state.reshape(n * b, width) - move
    state[:, -1] += 2 * (word * state[:, :-2]).sum(1) - costs.index_select(0, code)[:, 0]
    return state.view(n, b, width)


def encode(
    target: Tensor, parts: Sequence[Rows], sums: Sums, beam: int = 1, rows: int = 1024, allowed: Tensor | None = None
) -> Sums:
    """One pass of coordinate descent over the groups of inputs: the error does not grow.

    allowed: (N, G) bool, the groups whose codes may change (all, if None). rows: taken at a time.
    """
    codes = sums.codes.clone()
    for a, b, hessian, _ in parts:
        for at in range(a, b, rows):
            piece = slice(at, min(at + rows, b))
            scale = inverse(sums.scale[piece])[:, None]
            may = None if allowed is None else allowed[piece]
            codes[piece] = _descend(target[piece] * scale, hessian, sums.books, codes[piece], beam, may)
    return replace(sums, codes=codes)


def _descend(target: Tensor, hessian: Tensor, books: Tensor, codes: Tensor, beam: int, may: Tensor | None) -> Tensor:
    (M, _, g), D, codes = books.shape, target.shape[1], codes.clone()
    width = max(BLOCK // g, 1) * g
    value = words(books, codes)
    lost = target - value
    for low in range(0, D, width):
        high = min(low + width, D)
        residual = lost @ hessian[:, low:high]  # (n, width)
        for at in range(low, high, g):
            own, j = slice(at, at + g), at // g
            old, metric = value[:, own], hessian[own, own]
            pull = torch.addmm(residual[:, at - low : at - low + g], old, metric)
            gained = ((2 * pull - old @ metric) * old).sum(1)
            new = search(pull, metric, books, codes[:, j] if M > 1 else None, beam, gained)  # of one word all are tried
            if may is not None:
                new = torch.where(may[:, j, None], new, codes[:, j])
            change, codes[:, j] = words(books, new[:, None]) - old, new
            lost[:, own] -= change
            residual.addmm_(change, hessian[own, low:high], alpha=-1)
    return codes


def start(target: Tensor, parts: Sequence[Rows], sums: Sums, beam: int = 1, rows: int = 1024) -> Sums:
    """Codes from nothing, group after group, each group's error fed back into the inputs after it.

    The codes of `sums` are not read. rows: taken at a time.
    """
    M, _, g = sums.books.shape
    codes = torch.zeros(len(target), target.shape[1] // g, M, dtype=torch.int32, device=target.device)
    for a, b, _, upper in parts:
        for at in range(a, b, rows):
            piece = slice(at, min(at + rows, b))
            codes[piece] = _feed(target[piece] * inverse(sums.scale[piece])[:, None], upper, sums.books, beam)
    return replace(sums, codes=codes)


def _feed(target: Tensor, upper: Tensor, books: Tensor, beam: int) -> Tensor:
    g, codes = books.shape[2], []
    corners = upper.unflatten(0, (-1, g)).unflatten(2, (-1, g)).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    roots = torch.linalg.inv_ex(corners).inverse  # (D/g, g, g), all at once: one that waits for the device
    metrics = roots @ roots.mT  # what an error costs here once the inputs after it adapt

    def choose(at: int, now: Tensor) -> Tensor:
        metric = metrics[at // g]
        pull = now.T @ metric
        codes.append(search(pull, metric, books, None, beam, (pull * now.T).sum(1)))
        return words(books, codes[-1][:, None]).T

    sweep(target.T, upper, choose, g)
    return torch.stack(codes, 1)


def rescale(target: Tensor, parts: Sequence[Rows], sums: Sums) -> Sums:
    """The best scale of each row: ⟨W, V⟩_H / ⟨V, V⟩_H with V the words before the scale; 0 where V weighs nothing."""
    value, scales = words(sums.books, sums.codes), []
    for a, b, hessian, _ in parts:
        weighted = value[a:b] @ hessian
        own = (weighted * value[a:b]).sum(1)
        scales.append((weighted * target[a:b]).sum(1) * inverse(own))
    return replace(sums, scale=torch.cat(scales))


def fit(target: Tensor, parts: Sequence[Rows], sums: Sums, steps: int) -> Sums:
    """Better codebooks for fixed codes and scales: `steps` of preconditioned conjugate gradients in fp32.

    The preconditioner is (weighted counts of pairs of codes) ⊗ (mean diagonal block of H): exact if H = I.
    """
    books, scale = sums.books, sums.scale[:, None]
    scatter, solve = _adjoint(sums), _preconditioner(parts, sums)

    def push(rows: Tensor) -> Tensor:
        return scatter(torch.cat([rows[a:b] @ h for a, b, h, _ in parts]) * scale)

    lost = push(target - scale * words(books, sums.codes))
    direction = near = solve(lost)
    norm = (lost * near).sum()
    enough = norm * 1e-8  # beyond it rounding errors would be amplified along directions that change nothing
    for _ in range(steps):
        moved = push(scale * words(direction, sums.codes))
        step = torch.where(norm > enough, norm * inverse((direction * moved).sum()), 0.0)
        books, lost = books + step * direction, lost - step * moved
        near = solve(lost)
        before, norm = norm, (lost * near).sum()
        direction = near + norm * inverse(before) * direction
    return replace(sums, books=_centred(books))


def _centred(books: Tensor) -> Tensor:
    """The same sums with all codebooks but the first around zero: what one adds another may not take away."""
    mean = books.mean(1, keepdim=True)  # (M, 1, g)
    return torch.cat((books[:1] - mean[:1] + mean.sum(0, keepdim=True), books[1:] - mean[1:]))


def _adjoint(sums: Sums) -> Map:
    """(N, D) -> (M, K, g): for each word the sum over the places where it is used."""
    M, K, g = sums.books.shape
    where = [uses(column, K) for column in sums.codes.view(-1, M).unbind(1)]

    def scatter(rows: Tensor) -> Tensor:
        return torch.stack([w @ rows.view(-1, g) for w in where])

    return scatter


def _preconditioner(parts: Sequence[Rows], sums: Sums) -> Map:
    M, K, g = sums.books.shape
    blocks = [
        h.unflatten(0, (-1, g)).unflatten(2, (-1, g)).diagonal(dim1=0, dim2=2).permute(2, 0, 1) for _, _, h, _ in parts
    ]
    sizes = [b.diagonal(dim1=1, dim2=2).mean(1) for b in blocks]  # (G,)
    inner = torch.linalg.inv_ex(_damped(torch.cat(blocks).mean(0) / torch.cat(sizes).mean())).inverse
    weight = torch.cat([s.expand(b - a, -1) for (a, b, _, _), s in zip(parts, sizes, strict=True)])
    outer = _pairs((weight * sums.scale.square()[:, None]).flatten(), sums.codes.view(-1, M).long(), K)
    if outer.dim() == 2:
        masses = inverse(outer)[..., None]
        return lambda r: (r * masses) @ inner
    outer = torch.cholesky_inverse(torch.linalg.cholesky_ex(_damped(outer.view(M * K, M * K))).L)
    return lambda r: (outer @ r.view(M * K, g) @ inner).view(M, K, g)


def _pairs(weight: Tensor, codes: Tensor, K: int) -> Tensor:
    """The weight of each pair of codes, (M, K, M, K), or where that is too large of each code, (M, K).

    weight: (n,); codes: (n, M).
    """
    M = codes.shape[1]
    unit = weight.mean() / 1024
    whole = (weight * inverse(unit)).round().long()  # whole numbers: their sums do not depend on the order

    def sums(index: Tensor, count: int) -> Tensor:
        return whole.new_zeros(count).index_add_(0, index, whole).float() * unit

    if M == 1 or M * K > 2048:
        return torch.stack([sums(c, K) for c in codes.unbind(1)])
    pairs = weight.new_zeros(M, K, M, K)
    for a in range(M):
        for b in range(a, M):
            found = sums(codes[:, a] * K + codes[:, b], K * K).view(K, K)
            pairs[a, :, b], pairs[b, :, a] = found, found.T
    return pairs


def _damped(matrix: Tensor) -> Tensor:
    strength = (1e-3 * matrix.diagonal().mean()).clamp(min=torch.finfo(matrix.dtype).tiny)
    return matrix + strength * torch.eye(len(matrix), device=matrix.device)


def inverse(x: Tensor) -> Tensor:
    """1 / x, and 0 where x is 0."""
    return torch.where(x == 0, 0.0, 1 / x)
