"""The native runtime writes what torch writes: a small run of `benchmarks.agree`, which says it of 200 drafts."""

from __future__ import annotations

from benchmarks.agree import KL, agreement
from benchmarks.sample import drafting_prompts
from panza.models import EMBEDDED
from tests.conftest import needs_kernels

pytestmark = needs_kernels


def test_greedy_drafts_are_those_of_torch():
    prompts = drafting_prompts(3)
    assert len({tuple(p) for p in prompts}) == 3 and min(map(len, prompts)) > 100
    found = agreement(EMBEDDED, prompts, tokens=16, cache_bits=16)
    assert found["tokens"] == 48 and found["differ_by_more"] == 0 and found["mean_kl"] < KL
