"""Trellis codes: what they reach on Gaussian numbers and on real layers, and every odd input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from compress import ops
from compress.decode import Trellis
from compress.errors import CompressError
from compress.methods import method, trellis
from compress.methods.trellis import Config, quantize
from compress.weight import QuantizedWeight


def relative_error(w: Tensor, hessian: Tensor, made: QuantizedWeight) -> float:
    return (ops.weighted_error(w - made.dense(), hessian) / ops.weighted_error(w, hessian)).item()


def gaussian(N: int, D: int, seed: int = 0) -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(seed))


def hessian_of(D: int, tokens: int, seed: int = 0) -> Tensor:
    """(1, D, D) of inputs with a decaying spectrum."""
    x = gaussian(tokens, D, seed) * torch.linspace(3, 0.1, D) @ gaussian(D, D, seed + 1)
    return (x.T @ x / tokens)[None]


@pytest.mark.parametrize(("bits", "window", "most"), [(2, 8, 0.078), (3, 8, 0.0215), (4, 8, 0.0059), (2, 6, 0.084)])
def test_gaussian_weights_lose_what_the_window_promises(bits: int, window: int, most: float):
    w, even = gaussian(256, 512), torch.eye(512)[None]
    (made,) = quantize([w], [even], Config(bits=bits, window=window))
    assert 4.0**-bits < relative_error(w, even, made) < most


def bits_of(made: QuantizedWeight) -> float:
    return 8 * sum(t.numel() * t.element_size() for t in made.state_dict().values()) / math.prod(made.shape)


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize(("rival", "part", "count"), [("gptq", 0.7, 5), ("aqlm", 0.95, 1)])
def test_real_layers_lose_less_than_by_others_at_about_the_same_bits(
    layers: list[tuple[str, Tensor, Tensor]], bits: int, rival: str, part: float, count: int
):
    other = method(rival)
    for name, w, h in layers[:count]:
        (ours,), (theirs,) = (
            quantize([w], [h], Config(bits=bits)),
            other.quantize([w], [h], other.Config.for_bits(bits)),
        )
        assert bits_of(ours) < 1.02 * bits_of(theirs), name
        assert relative_error(w, h, ours) < part * relative_error(w, h, theirs), name


@pytest.mark.parametrize(("window", "step"), [(6, 2), (7, 2), (8, 2), (7, 3), (8, 3), (6, 4), (7, 4), (8, 4)])
def test_streams_hold_the_windows_they_were_made_of(window: int, step: int):
    kind = Trellis(16, 32, step, window)
    kind.codes.copy_(torch.randint(0, 256, kind.codes.shape, dtype=torch.uint8))
    states = kind.states()
    again = Trellis(16, 32, step, window)
    again.codes.copy_(trellis.stream(states, step, window))
    assert torch.equal(again.states(), states)


def test_what_is_encoded_is_what_is_decoded():
    w, h = gaussian(32, 64), hessian_of(64, 200)
    rows = trellis._rows(w, h, trellis._transform(w, h, 0), Config().damping, {})
    lut = trellis.search(rows, 2, Config())
    (made,) = quantize([w], [h], Config())
    assert torch.equal(made.coded(), rows[0].coded(lut))


@pytest.mark.parametrize("shape", [(1, 1), (7, 137), (16, 16), (1, 64), (100, 1)])
def test_odd_sizes(shape: tuple[int, int]):
    w, h = gaussian(*shape), hessian_of(shape[1], 300)
    (made,) = quantize([w], [h], Config(bits=4))
    assert made.dense().shape == shape and relative_error(w, h, made) < 0.05


def degenerate() -> dict[str, tuple[Tensor, Tensor]]:
    w, h, x = gaussian(32, 64), hessian_of(64, 200), gaussian(1, 64)
    dead_rows, dead_inputs = w.clone(), h.clone()
    dead_rows[5:9] = 0
    dead_inputs[:, 10:20] = dead_inputs[:, :, 10:20] = 0
    return {
        "fewer tokens than inputs": (w, hessian_of(64, 20)),
        "one token": (w, (x.T @ x)[None]),
        "no token": (w, torch.zeros(1, 64, 64)),
        "inputs that never move": (w, dead_inputs),
        "outputs of zeros": (dead_rows, h),
        "only zeros": (torch.zeros(32, 64), h),
        "tiny weights": (w * 1e-5, h),
        "large weights": (w * 1e3, h),
        "one row far larger": (w * torch.cat((torch.full((1, 1), 1e3), torch.ones(31, 1))), h),
        "large inputs": (w, h * 1e6),
    }


@pytest.mark.parametrize("case", degenerate())
def test_degenerate_inputs(case: str):
    w, h = degenerate()[case]
    (made,) = quantize([w], [h], Config(bits=4))
    dense = made.dense()
    assert dense.isfinite().all() and (w - dense).square().sum() <= 0.05 * w.square().sum() + 1e-6


@pytest.mark.parametrize("N", [64, 48, 50])
def test_output_groups_keep_their_own_hessians(N: int):
    """A group whose inputs lie in half of the space loses less there than with the mean Hessian."""
    w, D = gaussian(N, 64), 64
    groups = torch.cat((hessian_of(D, 40, 1), hessian_of(D, 40, 5)))
    mean = groups.mean(0, keepdim=True)
    own, common = (quantize([w], [h], Config())[0] for h in (groups, mean))
    assert relative_error(w, groups, own) < relative_error(w, groups, common)


def test_weights_that_read_one_input_share_table_and_signs():
    h = hessian_of(64, 200)
    made = quantize([gaussian(32, 64), gaussian(16, 64, 1), gaussian(7, 64, 2)], [h, h, h.clone()], Config())
    assert all(m.decode.lut is made[0].decode.lut for m in made)
    assert all(torch.equal(m.transform.in_signs, made[0].transform.in_signs) for m in made)
    assert [m.shape for m in made] == [(32, 64), (16, 64), (7, 64)]


def test_a_seed_decides_everything():
    w, h = gaussian(32, 64), hessian_of(64, 200)
    first, again, other = (quantize([w], [h], Config(seed=seed))[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["decode.codes"], other["decode.codes"])


def test_bands_encode_alone_as_together():
    w, h = gaussian(64, 64), hessian_of(64, 200)[0]
    feedback, lut, scale = trellis.Feedback.of(h), trellis.default_lut(8, 2), torch.ones(64)
    together = trellis.encode(w, feedback, lut, scale, 2)
    alone = trellis.encode(w[16:48], feedback, lut, scale[16:48], 2)
    same = (together[1:3] == alone).float().mean()
    assert same > 0.99, "but for ties that rounding decides"


def test_fitting_lowers_the_error_of_given_states():
    w, h = gaussian(64, 64), hessian_of(64, 200)
    rows = trellis._rows(w, h, trellis._transform(w, h, 0), Config().damping, {})
    lut = trellis.default_lut(8, 2)
    rows[0].states = trellis.encode(rows[0].target, rows[0].feedback, lut, rows[0].scale, 2)
    before = rows[0].error(lut)
    fitted = trellis.fit(rows, lut)
    assert rows[0].error(fitted) < before and torch.equal(fitted, fitted.half().float())


def test_half_bits_take_one_more_on_half_of_the_weights():
    h, down = hessian_of(64, 200), hessian_of(128, 200)
    pair = quantize([gaussian(32, 64), 2 * gaussian(32, 64, 1)], [h, h], Config(bits=2.5))
    assert [m.decode.step for m in pair] == [2, 3], "the one with more output energy"
    assert [
        quantize([w], [h], Config(bits=2.5))[0].decode.step
        for w, h in ((gaussian(64, 64), h), (gaussian(64, 128), down))
    ] == [2, 3]


@pytest.mark.parametrize("settings", [{"bits": 1}, {"bits": 2.3}, {"window": 9}, {"rounds": 0}, {"lookahead": 65}])
def test_settings_it_does_not_have_are_refused(settings: dict):
    with pytest.raises(CompressError, match=str(next(iter(settings.values())))):
        Config(**settings)


def test_padding_is_small_or_makes_a_larger_block():
    assert [trellis.padded(n) for n in (1, 7, 137, 384, 1000, 4000, 4864)] == [16, 16, 144, 384, 1024, 4096, 4864]


def test_the_file_costs_what_the_bits_say():
    w, h = gaussian(256, 512), torch.eye(512)[None]
    (made,) = quantize([w], [h], Config(bits=2))
    parts = {name: t.numel() * t.element_size() * 8 / w.numel() for name, t in made.state_dict().items()}
    assert 2 <= parts["decode.codes"] < 2.01 and sum(parts.values()) < 2.08
