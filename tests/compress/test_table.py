"""The table of all methods: a row each, taken up where it stopped, written between the marks."""

from __future__ import annotations

import json
from pathlib import Path

from compress.table import MARKS, main


def test_it_fills_a_readme_and_takes_up_finished_rows(tiny_base: Path, tmp_path: Path, capsys):
    (tmp_path / "text.txt").write_text("Hello Anna, the review works on Thursday at 10:00. " * 60)
    readme = tmp_path / "README.md"
    readme.write_text("before\n" + MARKS[0] + "old\n" + MARKS[1] + "after\n")
    arguments = [
        str(tiny_base), "--text", str(tmp_path / "text.txt"), "--calibration", str(tmp_path / "text.txt"),
        "--work", str(tmp_path / "work"), "--readme", str(readme), "--methods", "rtn", "gptq", "--bits", "3", "0.3",
        "--sequences", "4", "--length", "16", "--context", "64",
    ]  # fmt: skip
    assert main(arguments) == 0
    lines = (tmp_path / "work" / "rows.jsonl").read_text().splitlines()
    assert [(json.loads(line)["method"], json.loads(line)["asked"]) for line in lines] == [
        ("", 16), ("rtn", 3), ("gptq", 3), ("rtn", 0.3), ("gptq", 0.3),
    ]  # fmt: skip
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| rtn | 3 |" in text and "- gptq at 0.3: " in text and "context 64" in text
    (tmp_path / "work" / "rows.jsonl").write_text("\n".join(lines[:3]) + '\n{"torn')
    assert main(arguments) == 0
    err = capsys.readouterr().err
    assert "torn" in err and err.count("gptq at 3 bits") == 1, "finished rows are not made again"
    assert not list((tmp_path / "work").glob("rtn-*"))


def test_a_mistake_is_told_before_any_row_and_not_kept(tiny_base: Path, tmp_path: Path, capsys):
    (tmp_path / "text.txt").write_text("Hello Anna, the review works on Thursday at 10:00. " * 60)
    arguments = [
        str(tiny_base), "--calibration", str(tmp_path / "text.txt"), "--work", str(tmp_path / "work"), "--methods", "rtn",
        "--bits", "3", "--sequences", "4", "--length", "16", "--context", "64", "--text", str(tmp_path / "later.txt"),
    ]  # fmt: skip
    assert main(arguments) == 1
    assert "later.txt' cannot be read" in capsys.readouterr().err and not (tmp_path / "work/rows.jsonl").exists()
    (tmp_path / "later.txt").write_text("Hello Mara, Thursday is fine. " * 60)
    assert main(arguments) == 0
