"""Rounding to nearest: its grid is the one it promises, and the search for it pays."""

from __future__ import annotations

import pytest
import torch

from compress.errors import CompressError
from compress.methods.rtn import Config, fit, quantize


def error(w: torch.Tensor, h: torch.Tensor, config: Config) -> float:
    return (quantize([w], [h], config)[0].dense() - w).square().sum().item()


def test_every_weight_is_at_the_nearest_level_of_its_group(chance: torch.Generator):
    w = torch.randn(5, 96, generator=chance)
    (made,) = quantize([w], [torch.eye(96)[None]], Config(3, 32))
    scale, zero = made.scale().detach(), made.decode.zero()
    levels = (torch.arange(8) - zero[..., None]) * scale[..., None]  # (N, G, 8)
    distance = (w.view(5, 3, 32, 1) - levels[:, :, None]).abs().amin(-1)
    assert torch.allclose((made.dense() - w).abs().view(5, 3, 32), distance, atol=1e-6)


def test_the_search_and_small_groups_and_bits_pay(some_rows):
    for name, w, h in some_rows:
        errors = [error(w, h, Config(bits, 64, search=n)) for bits in (2, 3, 4) for n in (0, 8)]
        assert errors == sorted(errors, reverse=True), name
        errors = [error(w, h, Config(3, group, search=8)) for group in (0, 128, 32)]
        assert errors == sorted(errors, reverse=True), name


def test_without_a_search_no_weight_is_clipped(chance: torch.Generator):
    w = torch.randn(9, 64, generator=chance) + 1
    (made,) = quantize([w], [torch.eye(64)[None]], Config(4, 64, search=0))
    step = made.scale().detach()
    assert ((made.dense() - w).abs() <= 1.01 * step).all(), "half a step, and half for the whole zero"


@pytest.mark.parametrize("symmetric", [False, True])
def test_hard_layers_keep_their_shape_and_stay_finite(hard, symmetric: bool):
    w, h = hard
    (made,) = quantize([w], [h], Config(3, 32, symmetric))
    dense = made.dense()
    assert dense.shape == w.shape and dense.isfinite().all()
    assert (dense - w).square().sum() <= 0.1 * w.square().sum() + 1e-12
    assert (dense[(w == 0).all(1)] == 0).all(), "dead outputs stay dead"


def test_what_cannot_be_compressed_is_refused_in_a_sentence(refused):
    (w, h), sentence = refused
    with pytest.raises(CompressError, match=sentence):
        quantize([w], [h], Config())


@pytest.mark.parametrize(("bits", "stored"), [(2, 2.15), (2.5, 2.57), (3, 3.15), (4, 4.17)])
def test_bits_are_those_the_docstring_says(bits: float, stored: float):
    (made,) = quantize([torch.randn(16, 1024)], [torch.eye(1024)[None]], Config.for_bits(bits))
    assert sum(t.numel() * t.element_size() for t in made.state_dict().values()) * 8 / made.dense().numel() <= stored


def test_bits_that_no_grid_has_are_refused():
    for bits in (0, 2.3, 9):
        with pytest.raises(CompressError, match=str(bits)):
            Config.for_bits(bits)


def test_importance_moves_the_grid_to_what_matters():
    values = torch.cat((torch.linspace(-1, 1, 63), torch.tensor([20.0])))[:, None]
    careless = fit(values, 3, False, 32)
    careful = fit(values, 3, False, 32, torch.cat((torch.ones(63), torch.tensor([1e-4])))[:, None])
    small = [(f.decode(f.codes(values)) - values)[:63].square().sum() for f in (careless, careful)]
    assert small[1] < small[0]
