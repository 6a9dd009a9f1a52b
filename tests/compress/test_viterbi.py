"""The search finds what trying every path finds; the two ways back through the costs agree; the learned tables hold."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from compress import luts, native, nvrtc
from compress.viterbi import Viterbi, trace, trace_small
from tests.conftest import needs_kernels


def paths_of(L: int, K: int, T: int, start: int | None) -> Tensor:
    """(paths, T): every path of T states, after `start` if there is one, by the definition of a window over bits."""
    first = range(2**L) if start is None else [start >> K | new << L - K for new in range(2**K)]
    made = []
    for state, *news in product(first, *[range(2**K)] * (T - 1)):
        path = [state]
        for new in news:
            path.append(path[-1] >> K | new << L - K)
        made.append(path)
    return torch.tensor(made)


@pytest.mark.parametrize(("L", "K", "T"), [(3, 1, 6), (4, 2, 4), (3, 2, 4), (2, 2, 4), (4, 3, 3), (4, 1, 1)])
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("plain", [False, True])
def test_no_path_is_cheaper(L: int, K: int, T: int, held: bool, plain: bool):
    chance, C = torch.Generator().manual_seed(L + 10 * K), 5
    lut, x = torch.randn(2**L, generator=chance), torch.randn(T, C, generator=chance)
    weight = torch.rand(T, C, generator=chance) + 0.1
    start = torch.randint(0, 2**L, (C,), generator=chance) if held else None
    found = Viterbi(lut, K, T, C, plain).paths(x, weight, start)
    for c in range(C):
        every = paths_of(L, K, T, start[c].item() if held else None)
        costs = (weight[:, c] * (x[:, c] - lut[every]).square()).sum(1)
        assert (every == found[:, c]).all(1).any(), "a path of the trellis"
        assert torch.isclose((weight[:, c] * (x[:, c] - lut[found[:, c]]).square()).sum(), costs.min(), rtol=1e-5)


def test_a_search_forgets_what_it_searched_before():
    x, other = torch.randn(2, 9, 3)
    weight, start = torch.ones(9, 3), torch.tensor([0, 7, 255])
    search = Viterbi(torch.randn(256), 2, 9, 3)
    fresh = search.paths(x, weight)
    search.paths(other, weight, start)
    assert torch.equal(search.paths(x, weight), fresh)


@pytest.mark.parametrize(("S", "step", "C"), [(16, 2, 1), (64, 3, 7), (256, 4, 137)])
def test_both_ways_back_are_one(S: int, step: int, C: int):
    cost = torch.randn(11, S, C)
    assert torch.equal(trace(cost, step), trace_small(cost, step))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(
    ("window", "step", "T", "C"), [(8, 2, 96, 1), (8, 2, 80, 333), (7, 3, 1, 7), (6, 4, 64, 137), (5, 5, 9, 3)]
)
def test_the_kernel_finds_what_the_loop_finds(window: int, step: int, T: int, C: int):
    x, weight, start = torch.randn(T, C), torch.rand(T, C) + 0.5, torch.randint(0, 1 << window, (C,))
    lut = torch.randn(1 << window)
    on_gpu, on_cpu = Viterbi(lut.cuda(), step, T, C), Viterbi(lut, step, T, C, plain=True)
    assert on_gpu.kernel is not None
    for first in (None, start):
        found = on_gpu.paths(x.cuda(), weight.cuda(), None if first is None else first.cuda()).cpu()
        assert is_path(found, first, window, step)
        errors = [(weight * (x - lut[path]).square()).sum(0) for path in (found, on_cpu.paths(x, weight, first))]
        assert torch.allclose(*errors, rtol=1e-5)


@needs_kernels
@pytest.mark.parametrize("isa", native._kernels.isas() if native.available() else [])
@pytest.mark.parametrize(
    ("window", "step", "T", "C"),
    [(8, 2, 96, 1), (8, 3, 33, 37), (7, 1, 1, 7), (6, 4, 64, 16), (8, 8, 3, 5), (2, 2, 9, 4)],
)
def test_the_native_search_finds_what_the_loop_finds(isa: str, window: int, step: int, T: int, C: int):
    x, weight, start = torch.randn(T, C), torch.rand(T, C) + 0.5, torch.randint(0, 1 << window, (C,))
    lut = torch.randn(1 << window)
    loop = Viterbi(lut, step, T, C, plain=True)
    for first in (None, start):
        numbers = (None if t is None else t.numpy() for t in (x, weight, first, lut))
        found = torch.from_numpy(native._kernels.viterbi(*numbers, step, native.pool(2), isa))
        assert is_path(found, first, window, step)
        errors = [(weight * (x - lut[path]).square()).sum(0) for path in (found, loop.paths(x, weight, first))]
        assert torch.allclose(*errors, rtol=1e-5)


def is_path(states: Tensor, first: Tensor | None, window: int, step: int) -> bool:
    """Whether each window holds the bits that the one before hands on."""
    kept = (1 << window - step) - 1
    begins = first is None or (first >> step == states[0] & kept).all()
    return bool((states[:-1] >> step == states[1:] & kept).all() and begins)


def test_a_source_that_does_not_compile_is_told_in_the_compilers_words():
    try:
        compiler = nvrtc.find_compiler()
    except OSError:
        pytest.skip("no NVRTC: torch is a CPU build")
    assert nvrtc.compiled((nvrtc.sources() / "viterbi.cu").read_bytes(), (8, 0), compiler)[1:4] == b"ELF"
    with pytest.raises(RuntimeError, match="undefined"):
        nvrtc.compiled(b'extern "C" __global__ void f() { int x = y; }', (8, 0), compiler)


# 1 % above what they reach; rate-distortion theory says 4^-step, a scalar quantiser 0.1175, 0.0345 and 0.0095
REACHED = {
    **{(6, 2): 0.0827, (7, 2): 0.0789, (8, 2): 0.0764},
    **{(6, 3): 0.0245, (7, 3): 0.0217, (8, 3): 0.0209},
    **{(6, 4): 0.0069, (7, 4): 0.0063, (8, 4): 0.0057},
}


@pytest.mark.parametrize(("window", "step"), REACHED)
def test_shipped_tables_code_gaussian_numbers_well(window: int, step: int):
    error = luts.gaussian_error(luts.default_lut(window, step), step, seed=7, steps=512)
    assert 4.0**-step < error < REACHED[window, step]


def test_tables_can_be_learned_again():
    """Another seed and fewer iterations come close to the shipped table; the untrained start does not."""
    shipped = luts.gaussian_error(luts.default_lut(6, 2), 2, seed=7, steps=512)
    again = luts.gaussian_error(luts.learn(6, 2, seed=1), 2, seed=7, steps=512)
    start = luts.gaussian_error(luts.learn(6, 2, seed=1, iterations=0), 2, seed=7, steps=512)
    assert again < 1.02 * shipped < 0.9 * start
