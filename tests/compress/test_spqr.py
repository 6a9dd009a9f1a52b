"""SpQR: at equal bits no worse than the published steps, and better than GPTQ where some weights are large."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from compress import ops
from compress.errors import CompressError
from compress.feedback import damped
from compress.methods import gptq
from compress.methods.spqr import Config, Problem, inverse, leave_one_out, quantize, second_level
from compress.weight import QuantizedWeight
from tests.compress.conftest import correlated
from tests.compress.published.spqr import fit_quantizer, spqr


def stored(made: QuantizedWeight) -> float:
    """Bits a weight."""
    return sum(t.numel() * t.element_size() for t in made.state_dict().values()) * 8 / math.prod(made.shape)


def relative(w: Tensor, h: Tensor, dense: Tensor) -> float:
    return (ops.weighted_error(w - dense, h) / ops.weighted_error(w, h)).item()


@pytest.mark.parametrize("threshold", [0.2, 0.6])
def test_no_worse_than_the_published_steps_at_no_more_bits(threshold: float, some_rows):
    for name, w, h in some_rows:
        (made,) = quantize([w], [h], Config(threshold=threshold))
        published = spqr(w, h[0], 3, 16, 3, 16, threshold, 0.01)
        assert relative(w, h, made.dense()) <= relative(w, h, published.weight), name
        assert len(made.sparse.values) <= published.outliers.sum(), f"{name}: all but the outliers takes the same"


def test_better_than_gptq_with_groups_at_equal_bits_on_real_layers(some_rows):
    for bits, other in ((2, gptq.Config(2)), (2.5, gptq.Config(2, 32)), (4, gptq.Config(3, 20))):
        for name, w, h in some_rows[-2:]:
            (ours,), (theirs,) = quantize([w], [h], Config.for_bits(bits)), gptq.quantize([w], [h], other)
            assert stored(ours) <= stored(theirs), (bits, name)
            assert relative(w, h, ours.dense()) < relative(w, h, theirs.dense()), (bits, name)


def test_where_some_weights_are_large_3_9_bits_beat_gptq_with_4(chance: torch.Generator):
    w, h = correlated(64, 512, 1500, chance)
    w /= torch.randn(3, 64, 512, generator=chance).square().mean(0).sqrt()  # Student's t, three degrees of freedom
    (ours,), (theirs,) = quantize([w], [h], Config.for_bits(4)), gptq.quantize([w], [h], gptq.Config.for_bits(4))
    assert stored(ours) < stored(theirs)
    assert relative(w, h, ours.dense()) < 0.7 * relative(w, h, theirs.dense())


def test_four_fits_find_the_best_that_leaving_out_any_one_weight_finds(chance: torch.Generator):
    now = torch.randn(16, 40, generator=chance)
    now[:4] = torch.tensor([-0.5, -0.4, 0.4, 0.5])[:, None]  # zero lies inside, whichever is left out
    now *= 1 + 9 * (torch.rand(16, 40, generator=chance) < 0.05)
    group = Problem(now, torch.rand(16, 1, generator=chance), torch.tensor(0.3), top=7)
    found = group.loss(*leave_one_out(group))
    for i in range(16):
        s, z = fit_quantizer(torch.cat((now[:i], now[i + 1 :])).T, 3)
        assert (found <= group.loss(s, z) + 1e-4).all(), i


def test_the_second_level_is_within_half_a_step_and_survives_fp16(chance: torch.Generator):
    for values in (torch.rand(2, 37, generator=chance), torch.full((1, 5), 0.07), torch.zeros(1, 3)):
        stats = second_level(values, 3, 16)
        error = (stats.values(16) - values).abs()
        assert (error <= 0.51 * stats.second.repeat_interleave(16, -1)[..., : values.shape[-1]] + 1e-6).all()
        table = stats.table(3, 16)
        assert torch.allclose(table().T, stats.values(16), atol=1e-6)


def test_an_outlier_is_kept_and_its_group_fitted_without_it(chance: torch.Generator):
    w, h = torch.rand(16, 64, generator=chance), torch.eye(64)[None]
    large = w.clone()
    large[3, 5] = 50
    (made,) = quantize([large], [h], Config(threshold=0.3))
    assert (made.dense()[3, 5] - 50).abs() < 0.05
    assert (made.dense()[3, :16] - large[3, :16]).abs().max() < 0.2, "its neighbours do not pay for it"


def test_a_lower_threshold_keeps_more_and_loses_less(some_rows):
    _, w, h = some_rows[0]
    made = [quantize([w], [h], Config(threshold=t))[0] for t in (0.1, 0.3, 0.9, math.inf)]
    errors = [relative(w, h, m.dense()) for m in made]
    assert errors == sorted(errors) and made[-1].sparse is None
    counts = [len(m.sparse.values) for m in made[:-1]]
    assert counts == sorted(counts, reverse=True) and counts[0] < 0.06 * w.numel()


def test_the_order_of_activations_pays(some_rows):
    for name, w, h in some_rows[:3]:
        made = [quantize([w], [h], Config(act_order=o))[0] for o in (False, True)]
        assert relative(w, h, made[1].dense()) < relative(w, h, made[0].dense()), name


@pytest.mark.parametrize("config", [Config(), Config(4, 8, rows=5, act_order=True), Config(3, 32, threshold=math.inf)])
def test_hard_layers_keep_their_shape_and_stay_finite(hard, config: Config):
    w, h = hard
    (made,) = quantize([w], [h], config)
    dense = made.dense()
    assert dense.shape == w.shape and dense.isfinite().all()
    error, all_of_it = (ops.weighted_error(e, damped(h, 0.01)) for e in (dense - w, w))
    assert error <= 0.1 * all_of_it
    assert dense[(w == 0).all(1)].abs().sum() <= 1e-3 * w.abs().sum() + 1e-3, "dead outputs stay all but dead"
    again = QuantizedWeight.from_spec(made.spec())
    again.load_state_dict(made.state_dict())
    assert torch.equal(again.dense(), dense)


def test_each_output_group_answers_to_its_own_hessian(chance: torch.Generator):
    w, h = correlated(96, 64, 300, chance, Q=3)
    mean = h.mean(0, keepdim=True)
    own, shared = (quantize([w], [matrices], Config())[0].dense() for matrices in (h, mean))
    assert relative(w, h, own) < relative(w, h, shared)
    alone = quantize([w[:32]], [h[:1]], Config(threshold=math.inf))[0].dense()
    assert torch.equal(quantize([w], [h], Config(threshold=math.inf))[0].dense()[:32], alone)


def test_weights_of_one_input_come_out_as_alone_and_the_same_each_time(chance: torch.Generator):
    (q, h), k = correlated(24, 64, 300, chance), torch.randn(8, 64, generator=chance)
    for w, made in zip((q, k), quantize([q, k], [h, h], Config()), strict=True):
        assert torch.equal(made.dense(), quantize([w], [h], Config())[0].dense())


def test_what_cannot_be_compressed_is_refused_in_a_sentence(refused):
    (w, h), sentence = refused
    with pytest.raises(CompressError, match=sentence):
        quantize([w], [h], Config())


def test_settings_that_mean_nothing_are_refused():
    for wrong in ({"bits": 0}, {"group": 0}, {"threshold": 0.0}, {"threshold": math.nan}, {"damping": -1.0}):
        with pytest.raises(CompressError, match="spqr takes"):
            replace(Config(), **wrong)
    with pytest.raises(CompressError, match="2, 2.5, 3, 4 bits a weight, not 5"):
        Config.for_bits(5)


@pytest.mark.parametrize(("bits", "about"), [(2, 2.1), (2.5, 2.5), (3, 2.9), (4, 3.9)])
def test_bits_are_those_the_docstring_says(bits: float, about: float, chance: torch.Generator):
    w, h = correlated(64, 1024, 3000, chance)
    (made,) = quantize([w], [h], Config.for_bits(bits))
    assert abs(stored(made) - about) < 0.1


def test_the_inverse_of_no_scale_is_no_scale():
    assert inverse(torch.tensor([0.5, 0.0, -0.25])).tolist() == [2, 0, -4]
