"""LNQ: free levels beat grids, each half of the alternation lowers the loss, the descent is coordinate descent."""

from __future__ import annotations

from statistics import geometric_mean

import pytest
import torch
from torch import Tensor

from compress import ops
from compress.errors import CompressError
from compress.feedback import damped, descend
from compress.methods import gptq
from compress.methods.lnq import Config, kmeans, least_squares, quantize
from compress.weight import QuantizedWeight
from tests.compress.conftest import correlated


def relative(w: Tensor, h: Tensor, dense: Tensor) -> float:
    return (ops.weighted_error(w - dense, h) / ops.weighted_error(w, h)).item()


@pytest.mark.parametrize("bits", [2, 3])
def test_lnq_beats_gptq_on_real_layers(bits: int, some_rows):
    shares = []
    for _, w, h in some_rows:
        (ours,) = quantize([w], [h], Config(bits, rounds=1, cycles=2))
        (theirs,) = gptq.quantize([w], [h], gptq.Config.for_bits(bits))
        shares.append(relative(w, h, ours.dense()) / relative(w, h, theirs.dense()))
    assert geometric_mean(shares) < 1, shares  # in one layer among several a grid may fit as well


def test_rounds_and_cycles_pay(some_rows):
    _, w, h = some_rows[0]
    errors = [
        relative(w, h, quantize([w], [h], Config(2, *steps))[0].dense()) for steps in ((0, 0), (1, 1), (1, 4), (3, 4))
    ]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("shape", [(32, 128, 512), (7, 137, 512), (137, 7, 40)])
def test_lnq_beats_gptq_on_correlated_inputs(shape: tuple[int, int, int], chance: torch.Generator):
    layers = [correlated(*shape, chance) for _ in range(5)]  # of one small layer chance decides
    for bits in (2, 3):
        ours, theirs = (
            sum(relative(w, h, quantize_([w], [h], config)[0].dense()) for w, h in layers)
            for quantize_, config in ((quantize, Config(bits)), (gptq.quantize, gptq.Config(bits)))
        )
        assert ours < theirs


@pytest.mark.parametrize(("D", "Q"), [(1, 1), (7, 1), (48, 1), (48, 3)])
def test_the_descent_is_plain_coordinate_descent(D: int, Q: int, chance: torch.Generator):
    w, h = correlated(9, D, 3 * D, chance, Q)
    h, start = damped(h, 0.01), w.round()
    fast = descend(w.T, start.T, h, lambda _, now: now.round()).T
    slow = start.double().clone()
    for row, out, matrix in zip(w, slow, h.double().repeat_interleave(9 // Q, 0), strict=True):
        for j in range(D):
            out[j] = (out[j] + (matrix[j] @ (row.double() - out)) / matrix[j, j]).round()
    assert (fast - slow).abs().gt(1e-3).float().mean() < 0.02, "a tie may fall either way in fp32"
    assert ops.weighted_error(w - fast, h) <= ops.weighted_error(w - start, h)


def test_the_levels_are_the_least_squares_ones(chance: torch.Generator):
    w, h = correlated(6, 40, 200, chance)
    h, codes = damped(h, 0.01), torch.randint(0, 4, (40, 6), generator=chance)
    fitted = least_squares(w.T, codes, torch.zeros(4, 6), h)
    root = torch.linalg.cholesky(h[0].double()).T
    for n in range(6):
        one_hot = torch.nn.functional.one_hot(codes[:, n], 4).double()
        exact = torch.linalg.lstsq(root @ one_hot, root @ w[n].double()[:, None]).solution[:, 0]
        assert torch.allclose(fitted[:, n].double(), exact, rtol=5e-3, atol=5e-3)


def test_a_level_that_no_weight_uses_stays(chance: torch.Generator):
    w, h = correlated(5, 20, 60, chance)
    fitted = least_squares(w.T, torch.randint(0, 3, (20, 5), generator=chance), torch.full((4, 5), 0.75), h)
    assert (fitted[3] == 0.75).all() and fitted.isfinite().all()


def test_kmeans_finds_clusters_and_follows_mass(chance: torch.Generator):
    centres = torch.tensor([-3.0, -1.0, 1.0, 3.0])
    rows = centres[torch.randint(0, 4, (3, 400), generator=chance)] + 0.01 * torch.randn(3, 400, generator=chance)
    assert torch.allclose(kmeans(rows, torch.ones(1, 400), 4), centres.expand(3, 4), atol=0.02)
    heavy = torch.where((rows[:1] > 2), 100.0, 1.0)
    spread = rows + torch.randn(3, 400, generator=chance)
    light, mass = kmeans(spread, torch.ones(1, 400), 2), kmeans(spread, heavy, 2)
    assert mass[0, 1] > light[0, 1], "the heavy cluster draws a level"


@pytest.mark.parametrize("bits", [1, 3])
def test_hard_layers_keep_their_shape_and_stay_finite(hard, bits: int):
    w, h = hard
    (made,) = quantize([w], [h], Config(bits))
    dense = made.dense()
    assert dense.shape == w.shape and dense.isfinite().all()
    error, all_of_it = (ops.weighted_error(e, damped(h, 0.01)) for e in (dense - w, w))
    assert error <= (0.08 if bits == 3 else 0.5) * all_of_it
    assert (dense[(w == 0).all(1)] == 0).all(), "dead outputs stay dead"
    again = QuantizedWeight.from_spec(made.spec())
    again.load_state_dict(made.state_dict())
    assert torch.equal(again.dense(), dense)


def test_each_output_group_answers_to_its_own_hessian(chance: torch.Generator):
    w, h = correlated(60, 64, 300, chance, Q=3)
    (made,) = quantize([w], [h], Config(2))
    for rows, whole, own in zip(w.tensor_split(3), made.dense().tensor_split(3), h, strict=True):
        (alone,) = quantize([rows], [own[None]], Config(2))
        assert abs(relative(rows, own[None], alone.dense()) - relative(rows, own[None], whole)) < 0.01


def test_weights_of_one_input_come_out_as_alone_and_the_same_each_time(chance: torch.Generator):
    (q, h), k = correlated(24, 64, 300, chance), torch.randn(8, 64, generator=chance)
    for w, made in zip((q, k), quantize([q, k], [h, h], Config(2)), strict=True):
        assert torch.equal(made.dense(), quantize([w], [h], Config(2))[0].dense())


def test_what_cannot_be_compressed_is_refused_in_a_sentence(refused):
    (w, h), sentence = refused
    with pytest.raises(CompressError, match=sentence):
        quantize([w], [h], Config())


def test_half_bits_and_too_many_are_refused():
    for bits in (2.5, 1, 5):
        with pytest.raises(CompressError, match=f"2, 3 or 4 whole bits, not {bits}"):
            Config.for_bits(bits)
    with pytest.raises(CompressError, match="1 to 6 bits"):
        Config(8)


@pytest.mark.parametrize(("bits", "stored"), [(2, 2.07), (3, 3.13), (4, 4.25)])
def test_bits_are_those_the_docstring_says(bits: int, stored: float):
    (made,) = quantize([torch.randn(8, 1024)], [torch.eye(1024)[None]], Config.for_bits(bits))
    assert sum(t.numel() * t.element_size() for t in made.state_dict().values()) * 8 / made.dense().numel() <= stored
