"""`panza compress`: a smaller model of base and adapter, which drafts until it is out of date."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from compress.measure import measure
from panza.assistant import Assistant
from panza.home import open_home
from panza.smaller import CompressConfig
from panza.types import DraftRequest, UserError
from tests.conftest import ME
from tests.test_path import Panza

ASK = DraftRequest("the review works on Thursday at 10:00", to="Anna Lee")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, mailbox: Path, tiny_base: Path) -> Panza:
    """Mail, playback and an adapter on the tiny base."""
    panza = Panza(tmp_path_factory.mktemp("smaller"))
    for words in (
        ("import", mailbox, "--me", ME),
        ("playback", "--tries", "0", "--base", tiny_base),
        ("train", "--epochs", "1", "--base", tiny_base),
    ):
        done = panza(*words)
        assert done.returncode == 0, done.stderr
    return panza


def assistant(home: Panza, tiny_base: Path) -> Assistant:
    return Assistant(open_home(home.home), str(tiny_base))


def words(panza: Assistant) -> str:
    return list(panza.draft(ASK))[-1].text


def test_a_smaller_model_drafts_until_it_is_out_of_date(home: Panza, tiny_base: Path):
    whole = words(assistant(home, tiny_base))
    done = home("compress", "--method", "rtn", "--bits", "8", "--sequences", "4", "--base", tiny_base, "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    out = Path(made["out"])
    assert made["calibrated_on"] == "mail" and made["bits_body"] < 9 and (out / "compressed.safetensors").is_file()
    assert made["perplexity"] == pytest.approx(made["perplexity_before"], rel=0.02), "eight bits lose next to nothing"
    assert sorted(p.name for p in out.parent.iterdir()) == [out.name], "merged weights and mail text are gone"
    assert "rtn at 8" in home("status").stdout

    panza = assistant(home, tiny_base)
    assert words(panza) == whole and panza.compressed == out and panza.learnt
    with pytest.MonkeyPatch.context() as patch:  # the base has other weights under its old name
        patch.setattr("panza.models.weights_id", lambda base: "others")
        assert panza.compressed is None and not panza.learnt
    assert panza.drafting_model(adapter=False).name == str(tiny_base), "without what was learnt: the plain base"
    weights = panza.adapter / "adapter_model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-4] + b"\0\0\0\0")
    assert assistant(home, tiny_base).compressed is None, "another adapter"
    weights.write_bytes(before)
    assert home("compress", "--undo").returncode == 0 and assistant(home, tiny_base).compressed is None


def test_the_adapter_is_in_it(home: Panza, tiny_base: Path):
    panza = assistant(home, tiny_base)
    made = panza.compress(CompressConfig("rtn", 8, 4))
    text = "Hello Anna,\n\nthe review works on Thursday at 10:00. Please bring number 107.\n\nAll the best,\nMara\n" * 3
    smaller, base = (measure(folder, text, context=256).perplexity for folder in (made["out"], tiny_base))
    assert smaller < 0.98 * base, "it has learnt something of Mara's mail"


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (CompressConfig("zip"), "'zip' is no method of compression: choose one of trellis, aqlm"),
        (CompressConfig(bits=0.5), "0.5 bits a weight is no size"),
        (CompressConfig(bits=16), "16 bits a weight is no size"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(config: CompressConfig, sentence: str, tmp_path: Path):
    with pytest.raises(UserError, match=sentence):
        Assistant(open_home(tmp_path / "home"), "/nowhere").compress(config)


def test_without_mail_the_model_calibrates_itself(tmp_path: Path, tiny_base: Path):
    made = Assistant(open_home(tmp_path / "home"), str(tiny_base)).compress(CompressConfig("rtn", 4, 4))
    assert made["calibrated_on"] == "own samples" and made["perplexity"] is None


def test_a_killed_run_leaves_no_mail_behind_once_it_ran_again(home: Panza, tiny_base: Path):
    models = home.home / "models"
    left = models / f"{assistant(home, tiny_base)._short_name}-rtn-4.work"
    left.mkdir()
    (left / "calibration.jsonl").write_text("{}")
    done: subprocess.CompletedProcess = home("compress", "--method", "rtn", "--bits", "4", "--base", tiny_base)
    assert done.returncode == 0 and not left.exists() and "Perplexity on mail kept aside" in done.stdout
