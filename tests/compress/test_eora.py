"""The repair is the best of its rank: what remains is the tail of the weighted error's singular values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compress import ops
from compress.eora import repair
from compress.errors import CompressError
from compress.methods import rtn
from compress.weight import QuantizedWeight


def rounded(w: Tensor, bits: int = 3) -> QuantizedWeight:
    (made,) = rtn.quantize([w], [torch.eye(w.shape[1])[None]], rtn.Config(bits=bits, group=0, search=0))
    return made


def inputs(D: int, tokens: int = 400, seed: int = 0) -> Tensor:
    """(tokens, D) that lie near few directions, as real ones do."""
    chance = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, D, generator=chance) @ torch.randn(D, D, generator=chance) ** 3


def hessian(x: Tensor) -> Tensor:
    return (x.T @ x / len(x))[None]


def error(w: Tensor, made: QuantizedWeight, h: Tensor) -> float:
    return ops.weighted_error(w - made.dense().detach(), h).item()


@pytest.mark.parametrize(("N", "D"), [(48, 64), (64, 40), (33, 57), (7, 7)])
@pytest.mark.parametrize("rank", [1, 4, 16, 64])
def test_what_remains_is_the_tail_of_the_singular_values(N: int, D: int, rank: int):
    torch.manual_seed(0)
    w, h = torch.randn(N, D), hessian(inputs(D))
    coarse = rounded(w)
    made = repair(coarse, w, h, rank, damp=0)
    values, vectors = torch.linalg.eigh(h[0].double())
    tail = torch.linalg.svdvals((w - coarse.dense()).detach().double() @ (vectors * values.clamp(min=0).sqrt()))[rank:]
    assert error(w, made, h) == pytest.approx(tail.square().sum().item(), rel=2e-3, abs=1e-6 * error(w, coarse, h))
    assert made.low_rank.A.dtype == torch.float16 and len(made.low_rank.A) == min(rank, N, D)


def test_it_beats_the_repair_that_does_not_know_the_inputs():
    torch.manual_seed(0)
    w, h = torch.randn(64, 48), hessian(inputs(48))
    coarse = rounded(w)
    blind = repair(coarse, w, torch.eye(48)[None], 8)
    assert error(w, repair(coarse, w, h, 8), h) < 0.8 * error(w, blind, h) < 0.8 * error(w, coarse, h)


def test_the_weight_given_stays_and_an_older_repair_is_replaced():
    torch.manual_seed(0)
    w, h = torch.randn(32, 48), hessian(inputs(48))
    coarse = rounded(w)
    once = repair(coarse, w, h, 4)
    assert coarse.low_rank is None and once.decode is coarse.decode
    assert torch.equal(repair(once, w, h, 4).dense(), once.dense())


def test_fewer_tokens_than_inputs_and_dead_inputs_are_no_trouble():
    torch.manual_seed(0)
    x = inputs(64, tokens=5)
    x[:, 3] = 0
    w = torch.randn(32, 64)
    coarse = rounded(w)
    for damp in (0, 0.01):
        made = repair(coarse, w, hessian(x), 8, damp)
        assert made.dense().isfinite().all() and error(w, made, hessian(x)) < 1e-3 * error(w, coarse, hessian(x))
    unseen = torch.eye(64)[None]
    assert error(w, repair(coarse, w, hessian(x), 16), unseen) < error(w, coarse, unseen), "damping mends the rest too"


@pytest.mark.parametrize("N", [20, 60])
def test_no_inputs_means_plain_svd_and_no_error_no_repair(N: int):
    torch.manual_seed(0)
    w, eye = torch.randn(N, 40), torch.eye(40)[None]
    coarse = rounded(w)
    made, plain = repair(coarse, w, torch.zeros(1, 40, 40), 4), repair(coarse, w, eye, 4)
    assert error(w, made, eye) == pytest.approx(error(w, plain, eye), rel=1e-3)
    exact = repair(coarse, coarse.dense().detach(), eye, 4)
    assert torch.equal(exact.dense(), coarse.dense())


def test_with_a_hessian_for_each_output_group_every_group_gains():
    torch.manual_seed(0)
    w = torch.randn(64, 48)
    h = torch.cat([hessian(inputs(48, seed=s)) for s in range(4)])
    coarse = rounded(w)
    made = repair(coarse, w, h, 12)
    for before, after in zip(*(ops.output_groups(w - q.dense().detach(), h) for q in (coarse, made)), strict=True):
        assert ops.weighted_error(after[0], after[1][None]) < 0.7 * ops.weighted_error(before[0], before[1][None])


def test_a_rank_below_one_is_refused():
    with pytest.raises(CompressError, match="rank of at least 1, not 0"):
        repair(rounded(torch.randn(8, 8)), torch.randn(8, 8), torch.eye(8)[None], 0)
