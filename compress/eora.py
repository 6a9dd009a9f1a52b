"""Repair a compressed weight's error by a low-rank term that is optimal for the layer's outputs. Knows tensors only.

EoRA (arXiv:2410.21271): of all B A of rank R, the one that minimises tr(E H Eᵀ) for what remains, E = W − Ŵ − B A.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress import ops
from compress.errors import CompressError
from compress.feedback import damped
from compress.weight import LowRank, QuantizedWeight


@torch.no_grad()
def repair(weight: QuantizedWeight, target: Tensor, hessian: Tensor, rank: int, damp: float = 0.01) -> QuantizedWeight:
    """The weight with `low_rank` set anew; codes and tables are shared with the one given.

    target: (N, D) fp32, the weight before compression. hessian: (Q, D, D) as methods get it, or (D, D). rank: at most
    min(N, D) is used. damp: share of the Hessian's mean diagonal added to it, so that directions that calibration
    never saw are repaired too. With Q > 1, A is that of the mean Hessian and B optimal for each output group.
    """
    N, D = weight.shape
    if rank < 1:
        raise CompressError(f"a repair has a rank of at least 1, not {rank}")
    hessian = damped(hessian.view(-1, D, D), damp)
    bare = QuantizedWeight(weight.shape, weight.decode, weight.scale, weight.transform, weight.sparse)
    error = target - bare.dense()
    A = _directions(error, hessian.mean(0), min(rank, N, D)).half().float()
    B = torch.cat([_fitted(rows, matrix, A) for rows, matrix in ops.output_groups(error, hessian)])
    bare.low_rank = LowRank(N, D, len(A)).to(target.device)
    bare.low_rank.A.data, bare.low_rank.B.data = A.half(), B.half()
    return bare


def _directions(error: Tensor, hessian: Tensor, rank: int) -> Tensor:
    """(R, D): the rows A whose span holds the best rank-R repair, of the size that balances it with its B."""
    root = _root(hessian)  # H = L Lᵀ
    values, vectors = _top(error @ root, rank)
    A = torch.linalg.solve_triangular(root, vectors, upper=False, left=False)  # Vᵀ L⁻¹
    norm = A.norm(dim=1, keepdim=True)  # B's column is as long as its singular value
    return A * (values[:, None] / norm.clamp(min=1e-30)).sqrt()


def _root(hessian: Tensor) -> Tensor:
    root, failed = torch.linalg.cholesky_ex(hessian)
    for more in (1e-5, 1e-3, 1e-1):  # a Hessian of few tokens, undamped, is singular to fp32's precision
        if not failed:
            break
        root, failed = torch.linalg.cholesky_ex(damped(hessian, more))
    if failed:
        raise CompressError("the Hessian of a layer to repair is not positive: its calibration inputs are not finite")
    return root


def _top(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The largest singular values (R,) of (N, D) and their right vectors (R, D), by the smaller Gram matrix."""
    wide = matrix.shape[0] < matrix.shape[1]
    gram = matrix @ matrix.T if wide else matrix.T @ matrix
    squares, vectors = torch.linalg.eigh(gram)  # ascending
    values, vectors = squares[-rank:].flip(0).clamp(min=0).sqrt(), vectors[:, -rank:].flip(1).T
    if wide:
        vectors = torch.nn.functional.normalize(vectors @ matrix)
    return values, vectors


def _fitted(error: Tensor, hessian: Tensor, A: Tensor) -> Tensor:
    """(N, R): the B that is optimal with this A, which fp16 has rounded: E H Aᵀ (A H Aᵀ)⁻¹."""
    right = hessian @ A.T  # (D, R)
    return error @ right @ torch.linalg.pinv(A @ right, hermitian=True)  # rows of A are zero where no error is left
