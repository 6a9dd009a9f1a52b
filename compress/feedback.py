"""Rounding in order, each error fed back into the weights still to come: the core of GPTQ, SpQR and LDLQ.

Knows tensors and Hessians; knows no grid, no codes. Letters: N outputs, D inputs, Q output groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from compress import native
from compress.errors import CompressError

TINIEST = 2.0**-24  # the least scale that fp16 holds
FP16_MAX = 65504  # tables lie in the file as fp16
SMALL = 64  # inputs that the native kernel rounds faster than products of halves do
WEAKEST = 1e-6  # a pivot below this part of the mean diagonal is noise in fp32
STRONGER = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # damping on top, tried in turn until the factorisation is sound


def check(weights: Sequence[Tensor], hessians: Sequence[Tensor]) -> None:
    """Refuse what no method can compress. Raises CompressError, a sentence that names the weight and the limit."""
    for number, (w, h) in enumerate(zip(weights, hessians, strict=True), 1):
        which = f"weight {number} of {len(weights)}"
        if w.dim() != 2 or 0 in w.shape:
            raise CompressError(f"{which} is {tuple(w.shape)}: only matrices of at least one row and column compress")
        if h.shape != (len(h), w.shape[1], w.shape[1]) or not 1 <= len(h) <= len(w):
            raise CompressError(f"the Hessian of {which} is {tuple(h.shape)}, not (Q, D, D) for {tuple(w.shape)}")
        if not (w.abs() <= FP16_MAX).all():  # false for NaN too
            raise CompressError(f"{which} holds NaN or numbers beyond ±{FP16_MAX}, the limit of its fp16 tables")
        if not h.isfinite().all():
            raise CompressError(f"the Hessian of {which} is not finite: its calibration inputs overflowed or hold NaN")


def damped(hessian: Tensor, damping: float) -> Tensor:
    """H + damping · mean(diag H) · I. hessian: (..., D, D); all-zero matrices get the identity for a mean.

    An input that calibration never moved (zero row and column) keeps damping as its whole weight: it is rounded to
    nearest, whatever the others do.
    """
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)  # (..., D)
    strength = damping * _mean(diagonal)
    return hessian + torch.diag_embed(strength[..., None].expand_as(diagonal))


def _mean(diagonal: Tensor) -> Tensor:
    mean = diagonal.mean(-1)
    return torch.where(mean > 0, mean, 1.0)


def inverse_upper(hessian: Tensor) -> Tensor:
    """U, upper triangular with H⁻¹ = Uᵀ U. hessian: (..., D, D) fp32, damped; damped more if it is singular.

    U[j, j]⁻² is the curvature of input j once the inputs after it adapt (GPTQ, arXiv:2210.17323, section 3.3).
    Raises CompressError for what is no Hessian at any damping.
    """
    for strength in STRONGER:
        factor, info = torch.linalg.cholesky_ex(damped(hessian, strength).flip(-1, -2))  # H = R Rᵀ with R upper
        pivots = factor.diagonal(dim1=-2, dim2=-1).amin(-1).square()
        mean = _mean(hessian.diagonal(dim1=-2, dim2=-1))
        if ((info == 0) & (pivots >= WEAKEST * mean)).all():
            identity = torch.eye(hessian.shape[-1], dtype=hessian.dtype, device=hessian.device)
            return torch.linalg.solve_triangular(factor.flip(-1, -2), identity.expand_as(hessian), upper=True)
    raise CompressError("a Hessian has negative curvature: it is no mean of x xᵀ")


def arrange(hessian: Tensor, D: int, damping: float, act_order: bool) -> tuple[Tensor, Tensor]:
    """The order to round in and `inverse_upper` of each output group's Hessian in it, padded to D inputs and damped.

    hessian: (Q, d, d), d ≤ D. Returns (D,) and (Q, D, D). act_order: greatest mean square first, padding last.
    """
    padding = D - hessian.shape[-1]
    hessian = torch.nn.functional.pad(hessian, (0, padding, 0, padding))
    order = torch.arange(D, device=hessian.device)
    if act_order:
        order = hessian.diagonal(dim1=-2, dim2=-1).mean(0).sort(descending=True, stable=True).indices
    return order, inverse_upper(damped(hessian[:, order[:, None], order], damping))


def arrange_each(
    hessians: Sequence[Tensor], sizes: Sequence[int], damping: float, act_order: bool
) -> list[tuple[Tensor, Tensor]]:
    """`arrange` for each Hessian and padded size; weights that hold the very same Hessian share one result."""
    made: dict[int, tuple[Tensor, Tensor]] = {}
    for h, D in zip(hessians, sizes, strict=True):
        if id(h) not in made:
            made[id(h)] = arrange(h.float(), D, damping, act_order)
    return [made[id(h)] for h in hessians]


def costs(upper: Tensor, N: int) -> Tensor:
    """What a squared error costs when the inputs after it adapt, U[j, j]⁻²: (D, N), or (D, 1) if all N rows agree.

    upper: (Q, D, D).
    """
    return each_output(upper.diagonal(dim1=-2, dim2=-1).pow(-2), N)


def each_output(values: Tensor, N: int) -> Tensor:
    """(Q, D), one row an output group -> (D, N), or (D, 1) if all N outputs are one group."""
    sizes = [len(rows) for rows in torch.arange(N).tensor_split(len(values))]
    return (
        values.T
        if len(values) == 1
        else torch.cat([v[:, None].expand(-1, n) for v, n in zip(values, sizes, strict=True)], 1)
    )


def feed(upper: Tensor, step: int = 1) -> Tensor:
    """(D, D): row block b is U[b, b]⁻¹ U[b, :]; an error e of block b changes the later weights by −feed[b, :]ᵀ e."""
    blocks = upper.unflatten(0, (-1, step))  # (D/step, step, D)
    if step == 1:
        return upper / upper.diagonal()[:, None]
    corners = blocks.unflatten(2, (-1, step)).diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (D/step, step, step)
    return torch.linalg.solve_triangular(corners, blocks, upper=True).flatten(0, 1)


def sweep(columns: Tensor, upper: Tensor, choose: Callable[[int, Tensor], Tensor], step: int = 1) -> Tensor:
    """Decide on `step` inputs at a time; what a decision loses, the inputs after it make up for as far as they can.

    columns: (D, N), the transposed weight, D divisible by `step`. upper: `inverse_upper` of its Hessian, (D, D), or
    (Q, D, D) for Q output groups.
    choose(j, now): called for j = 0, step, 2 step, …; now (step, N) holds inputs j … j+step as the errors so far
    have moved them, all of them current; returns what they decode to. Returns (D, N), everything chosen.

    The loss tr(E H Eᵀ) is Σ_j |now_j − chosen_j|² / U[j, j]² at step 1. Updates are lazy by halves: every product is
    as large as the recursion allows, and nothing is read before all errors before it have arrived.
    """
    w, errors = columns.clone(), torch.empty_like(columns)
    gains = [feed(matrix, step).T for matrix in upper.reshape(-1, *upper.shape[-2:])]
    parts = list(zip(w.tensor_split(len(gains), 1), errors.tensor_split(len(gains), 1), gains, strict=True))

    def over(first: int, last: int) -> None:
        if last - first == step:
            now = w[first:last]
            torch.sub(now, choose(first, now), out=errors[first:last])
            return
        middle = first + (last - first) // (2 * step) * step
        over(first, middle)
        for rows, lost, gain in parts:
            rows[middle:last].addmm_(gain[middle:last, first:middle], lost[first:middle], alpha=-1)
        over(middle, last)

    over(0, len(w))
    return w.sub_(errors)


def round_group(
    now: Tensor, upper: Tensor, scale: Tensor, zero: Tensor, top: int, reach: Tensor | None = None
) -> Tensor:
    """`sweep` over inputs that share a grid of each output's own: (g, N), what they decode to.

    now: (g, N). upper: (Q, g, g), the group's part of `inverse_upper`. scale, zero: (N,); levels are scale · (q − zero),
    q = 0 … top. reach: (g, 1), or (g, N) for Q > 1; a number further than that from its grid stays as it is. A small group
    of one output group on a CPU is rounded by the native kernel: the same but for numbers half way between two levels.
    """
    finer = torch.where(scale.abs() < TINIEST, 0, 1 / scale)
    far = now.new_full((len(now), 1), torch.inf) if reach is None else reach
    if len(upper) == 1 and len(now) <= SMALL and now.device.type == "cpu" and native.available():
        made, gain = now.clone(memory_format=torch.contiguous_format), feed(upper[0]).contiguous()
        native.round_group(made, gain, scale.contiguous(), finer, zero.contiguous(), top, far.flatten())
        return made
    base = -zero * scale

    def nearest(j: int, column: Tensor) -> Tensor:
        decoded = torch.addcmul(base, torch.addcmul(zero, column, finer).round_().clamp_(0, top), scale)
        return torch.where((column - decoded).abs_() > far[j], column, decoded)

    return sweep(now, upper, nearest)


def descend(columns: Tensor, chosen: Tensor, hessian: Tensor, choose: Callable[[int, Tensor], Tensor]) -> Tensor:
    """One round of cyclic coordinate descent on tr(E H Eᵀ): each input in turn gets the best for what all others are.

    columns, chosen: (D, N), the weight and what it decodes to. hessian: (D, D) or (Q, D, D), damped.
    choose(j, now): now (1, N) is what input j would best decode to; returns what it does. Returns the new chosen; the
    loss never grows if choose takes the nearest. Lazy by halves, as `sweep`.
    """
    matrices = hessian.reshape(-1, *hessian.shape[-2:])
    new, change = chosen.clone(), torch.empty_like(chosen)
    lost = torch.cat(
        [h @ e for h, e in zip(matrices, (columns - chosen).tensor_split(len(matrices), 1), strict=True)], 1
    )
    curvature = each_output(matrices.diagonal(dim1=-2, dim2=-1), columns.shape[1])
    parts = list(zip(lost.tensor_split(len(matrices), 1), change.tensor_split(len(matrices), 1), matrices, strict=True))

    def over(first: int, last: int) -> None:
        if last - first == 1:
            here = slice(first, last)
            now = torch.addcdiv(chosen[here], lost[here], curvature[here])
            torch.sub(choose(first, now), chosen[here], out=change[here])
            return
        middle = (first + last) // 2
        over(first, middle)
        for rows, moved, h in parts:
            rows[middle:last].addmm_(h[first:middle, middle:last].T, moved[first:middle], alpha=-1)
        over(middle, last)

    over(0, len(new))
    return new.add_(change)
