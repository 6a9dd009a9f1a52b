"""`panza doctor`: numbers that were measured, on either backend."""

from __future__ import annotations

import json

import pytest

from compress import native
from panza import doctor
from panza.models import load_for_drafts
from tests.conftest import needs_kernels
from tests.test_path import Panza


@needs_kernels
def test_the_native_backend_is_measured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "SPAN", 8 << 20)
    model, why = load_for_drafts(backend="native")
    report = doctor.examine(model, why)
    assert report.instruction_set in report.instruction_sets and report.backend == "native"
    assert 0 < report.tokens_per_s and 0 < report.prompt_tokens_per_s and 0 < report.gb_per_s
    assert report.limit_tokens_per_s == pytest.approx(report.gb_per_s * 1e3 / report.megabytes_per_token)
    text = report.sentences()
    assert "GB/s" in text and "on the native backend" in text and "MB of weights" in text
    assert (
        f"{report.threads} threads" in text and report.threads == native.cores() and "tokens/s; reads a prompt" in text
    )
    share = report.passes_per_s / report.limit_tokens_per_s
    assert report.limited_by == ("memory" if share > doctor.MEMORY_BOUND else "arithmetic")
    assert f"{report.limited_by} limits them" in text


@pytest.mark.parametrize(("passes", "word"), [(90.0, "memory"), (30.0, "arithmetic"), (None, "")])
def test_what_limits_is_said(passes: float | None, word: str):
    report = doctor.Report("x", "3", "avx2", ["avx2"], 2, 5.0, "m", "native", "", 50.0, 400.0, 120.0, 100.0, passes)
    assert report.limited_by == word and ("limits them" in report.sentences()) == bool(word)


def test_torch_is_measured_and_why_is_said(tiny_base):
    model, _ = load_for_drafts(str(tiny_base), backend="torch")
    report = doctor.examine(model, "it is a test")
    assert report.backend == "torch" and report.limit_tokens_per_s is None
    assert "not native: it is a test" in report.sentences()


def test_without_kernels_it_says_what_to_install(tiny_base, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native, "_kernels", None)
    report = doctor.examine(*load_for_drafts(str(tiny_base)))
    assert report.gb_per_s is None and "without a C++ compiler" in report.sentences()


def test_the_verb_prints_one_object(tmp_path, tiny_base):
    done = Panza(tmp_path)("doctor", "--base", tiny_base, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["model"] == str(tiny_base)
