"""AQLM: the search finds the best words, the fit the best codebooks; together they beat the published steps and GPTQ."""

from __future__ import annotations

import itertools
from dataclasses import replace
from statistics import geometric_mean

import pytest
import torch
from torch import Tensor

from compress import additive, ops
from compress.additive import Rows, Sums
from compress.errors import CompressError
from compress.feedback import damped, inverse_upper
from compress.kmeans import kmeans, least, nearest, uses
from compress.methods import aqlm, gptq
from compress.methods.aqlm import SHAPES, Config, Shape, choose_shape, quantize
from tests.compress.conftest import correlated
from tests.compress.published.aqlm import aqlm as published


def spread(g: int, chance: torch.Generator) -> Tensor:
    """A positive definite (g, g)."""
    x = torch.randn(2 * g, g, generator=chance)
    return x.T @ x / g


def some(N: int, D: int, M: int, K: int, g: int, chance: torch.Generator) -> tuple[Tensor, list[Rows], Sums]:
    """A target, its Hessian, and sums at random that have nothing to do with it."""
    w, h = correlated(N, D, 3 * D, chance)
    h = damped(h[0] / h.diagonal(dim1=1, dim2=2).mean(), 0.01)
    codes = torch.randint(K, (N, D // g, M), generator=chance, dtype=torch.int32)
    scale = 0.5 + torch.rand(N, generator=chance)
    return w, [Rows(0, N, h, inverse_upper(h))], Sums(torch.randn(M, K, g, generator=chance), codes, scale)


def relative(made, w: Tensor, h: Tensor) -> float:
    return (ops.weighted_error(w - made.dense(), h) / ops.weighted_error(w, h)).item()


def bits_in(*made) -> float:
    """A weight, of all the tensors in a file, a shared one once."""
    tensors = {t.data_ptr(): t for q in made for t in q.state_dict().values() if t.numel()}
    return sum(t.numel() * t.element_size() * 8 for t in tensors.values()) / sum(q.shape[0] * q.shape[1] for q in made)


@pytest.mark.parametrize(("width", "count"), [(1, 1), (7, 3), (256, 8), (4096, 4), (5000, 1)])
def test_the_least_are_the_least(width: int, count: int, chance: torch.Generator):
    errors = torch.rand(50, width, generator=chance) - 0.3
    errors[-1, -count:] = -1 - torch.arange(count) / count  # the last of a row count too
    values, places = least(errors.clone(), count)
    expected = errors.sort(1).values[:, :count]
    assert torch.allclose(errors.gather(1, places), expected, rtol=1e-3), "at most the cut bits apart"
    assert torch.allclose(values, expected, rtol=1e-3)
    assert all(len(set(row)) == count for row in places.tolist())


def test_uses_sum_by_index(chance: torch.Generator):
    index, values = torch.randint(300, (999,), generator=chance), torch.randn(999, 3, generator=chance)
    assert torch.allclose(uses(index, 400) @ values, torch.zeros(400, 3).index_add_(0, index, values), atol=1e-4)


def test_kmeans_finds_clusters_that_lie_apart(chance: torch.Generator):
    centres = 100 * torch.cat((torch.eye(4), -torch.eye(4)))
    points = centres.repeat(50, 1) + torch.randn(400, 4, generator=chance)
    runs = [kmeans(points, torch.ones(400, 1), 12, 20, chance, 64) for _ in range(5)]
    lost = [(points - c[nearest(points, c, 64)]).square().mean() for c in runs]
    assert min(lost) < 1.5, "12 centroids for 8 clusters: five starts do not all miss one"


@pytest.mark.parametrize("M", [1, 2, 3])
def test_a_search_that_keeps_all_hypotheses_is_exhaustive(M: int, chance: torch.Generator):
    K, g = 6, 5
    books, metric = torch.randn(M, K, g, generator=chance), spread(g, chance)
    points = torch.randn(40, g, generator=chance)
    codes = additive.search(points @ metric, metric, books, None, K**M, (points @ metric * points).sum(1))
    sums = torch.stack(
        [sum(b[c] for b, c in zip(books, combo, strict=True)) for combo in itertools.product(range(K), repeat=M)]
    )
    lost = points[:, None] - sums
    best = (lost @ metric * lost).sum(-1).min(1).values
    found = points - additive.words(books, codes[:, None])
    assert torch.allclose((found @ metric * found).sum(1), best, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("beam", [1, 4])
def test_a_search_from_codes_never_loses_and_a_wider_beam_wins(beam: int, chance: torch.Generator):
    books, metric = torch.randn(3, 16, 8, generator=chance), spread(8, chance)
    points, codes = torch.randn(500, 8, generator=chance), torch.randint(16, (500, 3), generator=chance).int()

    def cost(codes: Tensor) -> Tensor:
        lost = points - additive.words(books, codes[:, None])
        return (lost @ metric * lost).sum(1)

    after = additive.search(points @ metric, metric, books, codes, beam)
    assert (cost(after) <= cost(codes) * (1 + 1e-3)).all()
    wider = additive.search(points @ metric, metric, books, codes, 4 * beam)
    assert cost(wider).mean() < cost(after).mean() < 0.7 * cost(codes).mean()


@pytest.mark.parametrize("M", [1, 2])
def test_a_pass_lowers_the_error_and_touches_only_what_it_may(M: int, chance: torch.Generator):
    w, parts, sums = some(30, 136, M, 16, 8, chance)
    may = torch.rand(30, 17, generator=chance) < 0.3
    after = additive.encode(w, parts, sums, beam=2, rows=7, allowed=may)
    assert additive.error(w, parts, after) < additive.error(w, parts, sums)
    assert torch.equal(after.codes[~may], sums.codes[~may]) and not torch.equal(after.codes, sums.codes)
    whole = additive.encode(w, parts, sums, beam=2, rows=7)
    assert additive.error(w, parts, whole) < additive.error(w, parts, after)


def test_a_pass_of_one_codebook_leaves_no_single_code_to_improve(chance: torch.Generator):
    w, parts, sums = some(6, 24, 1, 5, 4, chance)
    for _ in range(30):
        sums = additive.encode(w, parts, sums)
    settled = additive.error(w, parts, sums)
    for n, j, k in itertools.product(range(6), range(6), range(5)):
        codes = sums.codes.clone()
        codes[n, j, 0] = k
        assert additive.error(w, parts, replace(sums, codes=codes)) >= settled * (1 - 1e-4)


def test_codes_from_feedback_beat_the_nearest_words(chance: torch.Generator):
    w, parts, sums = some(64, 96, 2, 32, 4, chance)
    plain = [Rows(0, 64, torch.eye(96), torch.eye(96))]
    fed = additive.error(w, parts, additive.start(w, parts, sums, beam=4))
    assert fed < 0.6 * additive.error(w, parts, additive.start(w, plain, sums, beam=4))


@pytest.mark.parametrize("M", [1, 2])
def test_the_fit_is_the_least_squares_solution(M: int, chance: torch.Generator):
    w, parts, sums = some(40, 24, M, 4, 3, chance)
    root = torch.linalg.cholesky(parts[0].hessian.double())
    basis = torch.eye(M * 4 * 3).view(-1, M, 4, 3)
    columns = [(replace(sums, books=b).dense().double() @ root).flatten() for b in basis]
    exact = torch.linalg.lstsq(torch.stack(columns, 1), (w.double() @ root).flatten()[:, None], driver="gelsd").solution
    best = additive.error(w, parts, replace(sums, books=exact.float().view(M, 4, 3)))
    found = additive.error(w, parts, additive.fit(w, parts, sums, 60))
    assert found <= best * (1 + 1e-3)
    few = [additive.error(w, parts, additive.fit(w, parts, sums, steps)) for steps in (1, 3, 8)]
    assert few[0] > few[1] > few[2] >= best * (1 - 1e-3)


def test_white_inputs_need_one_step(chance: torch.Generator):
    w, _, sums = some(300, 24, 2, 8, 3, chance)
    parts = [Rows(0, 300, torch.eye(24))]
    one, many = (additive.error(w, parts, additive.fit(w, parts, sums, steps)) for steps in (1, 20))
    assert one <= many * 1.01


def test_scales_are_the_best_for_each_row(chance: torch.Generator):
    w, parts, sums = some(20, 24, 2, 8, 4, chance)
    best = additive.rescale(w, parts, sums)
    for factor in (0.99, 1.01):
        assert additive.error(w, parts, best) < additive.error(w, parts, replace(best, scale=best.scale * factor))


def test_gaussian_weights_at_two_bits():
    w = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    (made,) = quantize([w], [torch.eye(1024)[None]], Config(shape="2x8g8", passes=2))
    assert (w - made.dense()).square().mean() <= 0.097
    assert bits_in(made) <= 2.08


def test_no_worse_than_the_published_steps_on_real_layers(layers):
    for name, w, h in layers:
        w = w[:32]  # the published steps are slow
        made, _ = published(w, h[0], 2, 5, 8)
        slow = (ops.weighted_error(w - made, h) / ops.weighted_error(w, h)).item()
        (fast,) = quantize([w], [h], Config(shape="2x5g8"))
        assert relative(fast, w, h) <= 0.95 * slow, name


@pytest.mark.parametrize(("bits", "share"), [(2, 0.8), (3, 0.9)])
def test_better_than_gptq_on_real_layers_at_no_more_bits(bits: int, share: float, layers):
    shares = []
    for name, w, h in layers:
        (ours,) = quantize([w], [h], Config.for_bits(bits))
        (grid,) = gptq.quantize([w], [h], gptq.Config.for_bits(bits))
        shares.append(relative(ours, w, h) / relative(grid, w, h))
        assert bits_in(ours) <= bits_in(grid) + 0.02, name
    assert max(shares) < 1 and geometric_mean(shares) < share, shares


def test_hard_layers_keep_their_shape_and_stay_finite(hard):
    w, h = hard
    for config in (Config(3), Config(shape="2x3g8", int8=True), Config(shape="1x5g5", rounds=0, passes=1)):
        (made,) = quantize([w], [h], config)
        dense = made.dense()
        assert dense.shape == w.shape and dense.isfinite().all()
        error, nothing = ops.weighted_error(w - dense, damped(h, 0.01)), ops.weighted_error(w, damped(h, 0.01))
        assert error <= nothing * (1 + 1e-3), "never worse than dropping the layer"
        assert (dense[(w == 0).all(1)] == 0).all(), "dead outputs stay dead"


@pytest.mark.parametrize("shape", ["1x10g4", "1x13g8", "3x4g5", "1x1g1", "4x4g8"])
def test_other_shapes_lower_the_error(shape: str, chance: torch.Generator):
    w, h = correlated(24, 100, 300, chance)
    (made,) = quantize([w], [h], Config(shape=shape, rounds=1, passes=1))
    assert relative(made, w, h) < 0.3
    assert made.decode.indices().max() < 2 ** Shape.parse(shape).bits


def test_weights_of_one_input_share_codebooks(chance: torch.Generator):
    (q, h), k = correlated(64, 96, 300, chance), torch.randn(40, 96, generator=chance)
    shared = quantize([q, k], [h, h], Config(shape="1x5g3"))
    assert shared[0].decode.codebooks is shared[1].decode.codebooks
    own = quantize([q, k], [h, h], Config(shape="1x5g3", shared=False))
    assert own[0].decode.codebooks is not own[1].decode.codebooks
    costs = [relative(a, w, h) / relative(b, w, h) for w, a, b in zip((q, k), shared, own, strict=True)]
    assert sum(costs) / 2 < 1.5, "of sixty seeds 1.14 on average, 1.29 at most"


def test_each_output_group_answers_to_its_own_hessian(chance: torch.Generator):
    w = torch.randn(90, 48, generator=chance)
    h = torch.cat([correlated(1, 48, 300, chance)[1] for _ in range(3)])
    (own,) = quantize([w], [h], Config(shape="1x6g2"))
    (mean,) = quantize([w], [h.mean(0, keepdim=True)], Config(shape="1x6g2"))
    assert relative(own, w, h) < 0.8 * relative(mean, w, h)


def test_a_seed_decides_all(chance: torch.Generator):
    w, h = correlated(48, 64, 300, chance)
    first, again, other = (quantize([w], [h], Config(shape="2x4g4", seed=seed))[0].dense() for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_int8_codebooks_are_bytes_and_lose_little(chance: torch.Generator):
    w, h = correlated(48, 64, 300, chance)
    two = quantize([w, w[:7]], [h, h], Config(shape="2x5g4", int8=True))
    decode, other = (weight.decode for weight in two)
    assert decode.codebooks.dtype == torch.int8 and decode.step.shape == (2, 1, 1)
    assert other.codebooks is decode.codebooks and other.step is decode.step, "read one input, share one table"
    (plain,) = quantize([w], [h], Config(shape="2x5g4"))
    (whole,) = quantize([w], [h], Config(shape="2x5g4", int8=True))
    assert relative(whole, w, h) < 1.1 * relative(plain, w, h)


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (384, 384), (1024, 384), (2048, 768), (4096, 4096)])
def test_the_shape_fits_the_bits_or_is_the_smallest(size: tuple[int, int]):
    found = [choose_shape([size], Config.for_bits(bits)) for bits in (2, 2.5, 3, 4)]
    for bits, shape in zip((2, 2.5, 3, 4), found, strict=True):
        scales = 16 / size[1]
        smallest = min(Shape.parse(name).bits_of([size], False) for name in SHAPES)
        assert shape.bits_of([size], False) - scales <= max(bits + aqlm.SLACK, smallest)


@pytest.mark.parametrize("int8", [False, True])
def test_bits_are_those_of_the_file(int8: bool):
    weights = [torch.randn(96, 100), torch.randn(32, 100)]
    made = quantize(weights, [torch.eye(100)[None]] * 2, Config(shape="2x5g8", rounds=0, passes=0, int8=int8))
    assert bits_in(*made) == pytest.approx(Shape(2, 5, 8).bits_of([(96, 100), (32, 100)], int8))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"shape": "2x8"}, "no shape '2x8'.* 2x8g8"),
        ({"shape": "0x8g8"}, "1 to 32 codebooks"),
        ({"shape": "1x17g8"}, "1 to 16 bits"),
        ({"bits": 0.5}, "1 to 5 bits a weight, not 0.5"),
        ({"beam": 0}, "beam of 1 or more, not 0"),
        ({"damping": -1}, "damping of 0 or more, not -1"),
    ],
)
def test_a_bad_setting_is_refused_in_a_sentence(changes: dict, sentence: str):
    with pytest.raises(CompressError, match=sentence):
        replace(Config.for_bits(2), **changes)


def test_what_cannot_be_compressed_is_refused_in_a_sentence(refused):
    (w, h), sentence = refused
    with pytest.raises(CompressError, match=sentence):
        quantize([w], [h], Config())
