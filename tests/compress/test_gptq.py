"""GPTQ: feeding errors back beats rounding, on real layers and on random ones; the sweep is the published one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from compress import ops
from compress.errors import CompressError
from compress.feedback import damped, inverse_upper, sweep
from compress.methods import gptq, rtn
from compress.methods.gptq import Config, quantize
from tests.compress.conftest import correlated

ORDERS = [(False, False), (False, True), (True, False), (True, True)]  # act_order, static_groups


def published(w: Tensor, hessian: Tensor, levels: Tensor) -> Tensor:
    """OPTQ's equations 2 and 3, one weight removed at a time from a fp64 inverse: no Cholesky, no blocks."""
    w, inverse, out = w.double(), hessian.double().inverse(), torch.empty_like(w).double()
    for j in range(w.shape[1]):
        out[:, j] = levels[(w[:, j, None] - levels).abs().argmin(1)]
        w = w - ((w[:, j] - out[:, j]) / inverse[j, j])[:, None] * inverse[j]
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
        inverse[j], inverse[:, j], inverse[j, j] = 0, 0, 1
    return out


@pytest.mark.parametrize("D", [1, 7, 137])
def test_the_sweep_is_the_published_update(D: int, chance: torch.Generator):
    w, h = correlated(5, D, 3 * D, chance)
    h, levels = damped(h, 0.01)[0], torch.linspace(-3, 3, 9)

    def nearest(_: int, now: Tensor) -> Tensor:
        return levels[(now[..., None] - levels).abs().argmin(-1)]

    swept = sweep(w.T, inverse_upper(h), nearest).T
    exact = published(w, h, levels)
    assert (swept - exact).abs().gt(1e-3).float().mean() < 0.02, "a tie may fall either way in fp32"


@pytest.mark.parametrize("step", [1, 4, 12])
def test_a_sweep_shows_each_step_the_weights_that_all_errors_before_it_ask_for(step: int, chance: torch.Generator):
    w, h = correlated(5, 48, 200, chance)
    h, seen = damped(h, 0.01)[0], {}

    def nearest(j: int, now: Tensor) -> Tensor:
        seen[j] = now.clone()
        return now.round()

    chosen = sweep(w.T, inverse_upper(h), nearest, step).double()
    for j, now in seen.items():  # the best the rest can do once j inputs are fixed: least squares
        rest = torch.linalg.solve(h[j:, j:].double(), h[j:, :j].double() @ (w.T[:j] - chosen[:j]))
        assert torch.allclose(now.double(), (w.T[j:] + rest)[:step], atol=1e-3)


def test_the_loss_is_what_each_rounding_costs_alone(chance: torch.Generator):
    w, h = correlated(5, 40, 100, chance)
    h, losses = damped(h, 0.01), []
    upper = inverse_upper(h)[0]

    def nearest(j: int, now: Tensor) -> Tensor:
        losses.append((now - now.round()).square().sum() / upper[j, j] ** 2)
        return now.round()

    chosen = sweep(w.T, upper, nearest).T
    assert torch.allclose(ops.weighted_error(w - chosen, h), sum(losses), rtol=1e-3)


def relative(module, w: Tensor, h: Tensor, config) -> float:
    (made,) = module.quantize([w], [h], config)
    return (ops.weighted_error(w - made.dense(), h) / ops.weighted_error(w, h)).item()


@pytest.mark.parametrize("bits", [2, 2.5, 3, 4])
def test_gptq_beats_rounding_on_real_layers(bits: float, some_rows):
    for (name, w, h), (act_order, static) in zip(some_rows, [*ORDERS, ORDERS[-1]], strict=True):
        config = replace(Config.for_bits(bits), act_order=act_order, static_groups=static)
        rounded = relative(rtn, w, h, rtn.Config.for_bits(bits))
        assert relative(gptq, w, h, config) < 0.6 * rounded, (name, act_order, static)


def test_the_order_of_activations_and_late_fits_and_the_search_pay(some_rows):
    config = Config(3, 64, search=16, act_order=False, static_groups=False)

    def mean(**changes) -> float:
        return sum(relative(gptq, w, h, replace(config, **changes)) for _, w, h in some_rows)

    assert mean(act_order=True) < mean() < mean(static_groups=True) and mean() < mean(search=0)


@pytest.mark.parametrize("shape", [(32, 128, 512), (7, 137, 512), (137, 7, 40)])
def test_gptq_beats_rounding_on_correlated_inputs(shape: tuple[int, int, int], chance: torch.Generator):
    w, h = correlated(*shape, chance)
    for bits in (2, 3, 4):
        assert relative(gptq, w, h, Config(bits, 32)) < relative(rtn, w, h, rtn.Config(bits, 32))


@pytest.mark.parametrize(("act_order", "static"), ORDERS)
def test_hard_layers_keep_their_shape_and_stay_finite(hard, act_order: bool, static: bool):
    w, h = hard
    (made,) = quantize([w], [h], Config(4, 32, act_order=act_order, static_groups=static))
    dense = made.dense()
    assert dense.shape == w.shape and dense.isfinite().all()
    rounded = rtn.quantize([w], [h], rtn.Config(4, 32))[0].dense()
    error, plain = (ops.weighted_error(w - d, damped(h, 0.01)) for d in (dense, rounded))
    assert error <= 1.5 * plain + 1e-9 * ops.weighted_error(w, h), (
        "hardly ever worse, even where there is nothing to win"
    )
    assert (dense[(w == 0).all(1)] == 0).all(), "dead outputs stay dead"


def test_each_output_group_answers_to_its_own_hessian(chance: torch.Generator):
    w, h = correlated(60, 64, 300, chance, Q=3)
    (made,) = quantize([w], [h], Config(3, 32, act_order=False))
    for rows, whole, own in zip(w.tensor_split(3), made.dense().tensor_split(3), h, strict=True):
        (alone,) = quantize([rows], [own[None]], Config(3, 32, act_order=False))
        assert torch.equal(alone.dense(), whole)


def test_weights_of_one_input_come_out_as_alone_and_the_same_each_time(chance: torch.Generator):
    (q, h), k = correlated(24, 64, 300, chance), torch.randn(8, 64, generator=chance)
    together = quantize([q, k], [h, h], Config(3, 32))
    for w, made in zip((q, k), together, strict=True):
        assert torch.equal(made.dense(), quantize([w], [h], Config(3, 32))[0].dense())


def test_the_order_is_stored_only_where_groups_follow_it(chance: torch.Generator):
    w, h = correlated(8, 100, 300, chance)
    (ordered,) = quantize([w], [h], Config(4, 32, static_groups=False))
    (static,) = quantize([w], [h], Config(4, 32))
    assert ordered.transform.order[:100].tolist() == h[0].diagonal().argsort(descending=True).tolist()
    assert static.transform.order is None


def test_what_cannot_be_compressed_is_refused_in_a_sentence(refused):
    (w, h), sentence = refused
    with pytest.raises(CompressError, match=sentence):
        quantize([w], [h], Config())


def test_a_matrix_that_is_no_hessian_is_refused():
    with pytest.raises(CompressError, match="negative curvature"):
        quantize([torch.ones(2, 3)], [-5 * torch.eye(3)[None]], Config())


def test_without_damping_a_singular_hessian_is_damped_as_needed(chance: torch.Generator):
    w, h = correlated(24, 64, 5, chance)
    assert relative(gptq, w, h, Config(3, 32, damping=0)) < relative(rtn, w, h, rtn.Config(3, 32))


@pytest.mark.parametrize(("bits", "stored"), [(2, 2.15), (2.5, 2.57), (3, 3.15), (4, 4.17)])
def test_bits_are_those_the_docstring_says(bits: float, stored: float):
    (made,) = quantize([torch.randn(16, 1024)], [torch.eye(1024)[None]], Config.for_bits(bits))
    assert sum(t.numel() * t.element_size() for t in made.state_dict().values()) * 8 / made.dense().numel() <= stored
