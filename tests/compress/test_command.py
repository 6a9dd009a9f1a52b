"""python -m compress: exit status, one JSON object, flags for every option."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from compress.__main__ import main, parser, settings_of
from compress.errors import CompressError
from compress.layers import recipe_for
from compress.model import Options

ROOT = Path(__file__).parents[2]


@pytest.fixture
def arguments(tiny_base: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "text.txt").write_text("Hello Anna, the review works on Thursday at 10:00. " * 60)
    small = ["--sequences", "4", "--length", "16", "--calibration", str(tmp_path / "text.txt")]
    return [str(tiny_base), "--out", str(tmp_path / "out"), *small]


def test_it_writes_a_model_and_prints_one_object(arguments: list[str], tmp_path: Path):
    command = [sys.executable, "-m", "compress", *arguments, "--method", "rtn", "--bits", "2.5", "--json"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found.keys() >= {"bits_per_weight", "bytes", "seconds", "peak_memory_bytes", "out"}
    assert found["bytes"] == sum(f.stat().st_size for f in (tmp_path / "out").iterdir() if f.name != "report.json")
    assert "block 2/2" in ran.stderr and "left" in ran.stderr


def test_without_json_it_is_a_sentence(arguments: list[str], capsys):
    assert main([*arguments, "--method", "rtn", "--bits", "4", "--set", "group=16", "symmetric=true"]) == 0
    assert "bits a weight" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["--method", "magic", "--bits", "2"], ["--method", "rtn", "--bits", "0.3"]])
def test_a_mistake_is_status_1_and_one_sentence(wrong: list[str], arguments: list[str], capsys):
    assert main([*arguments, *wrong]) == 1
    found = capsys.readouterr()
    assert found.err.startswith("error: ") and found.err.count("\n") == 1 and not found.out


def test_wrong_usage_is_status_2(capsys):
    with pytest.raises(SystemExit) as left:
        main(["model", "--bits", "two"])
    assert left.value.code == 2


def test_every_option_has_a_flag_with_its_default():
    parsed = parser().parse_args(["m", "--method", "rtn", "--bits", "3", "--out", "o"])
    assert {f.name: getattr(parsed, f.name) for f in fields(Options)} == {f.name: f.default for f in fields(Options)}
    assert parser().parse_args(["m", "--method", "rtn", "--bits", "3", "--out", "o", "--rotate"]).rotate == "full"


def test_settings_are_numbers_truth_and_words():
    pairs = ["group=64", "act_order=false", "damping=0.1", "shape=2x8g8"]
    assert settings_of(pairs) == {"group": 64, "act_order": False, "damping": 0.1, "shape": "2x8g8"}
    for wrong in ("group", "=3", "group="):
        with pytest.raises(CompressError, match=f"'{wrong}' is no setting"):
            settings_of([wrong])


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"group": "many"}, "rtn takes a whole number as group, not 'many'"),
        ({"group": True}, "rtn takes a whole number as group, not 'True'"),
        ({"group": 2.5}, "rtn takes a whole number as group, not '2.5'"),
        ({"symmetric": 1}, "rtn takes a truth value as symmetric, not '1'"),
        ({"colour": 1}, "rtn has no setting 'colour'"),
    ],
)
def test_a_setting_of_another_kind_is_refused(setting: dict, sentence: str):
    with pytest.raises(CompressError, match=sentence):
        recipe_for("rtn", 3, settings=setting)
    assert recipe_for("gptq", 3, settings={"damping": 1}).low.damping == 1, "a whole number is a number"
