"""The command line without a model: what it prints, as words and as JSON, and how mistakes end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from panza import cli
from tests.conftest import ME

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`panza WORDS` in this process: (exit status, standard output, standard error)."""
    monkeypatch.setenv("PANZA_HOME", str(tmp_path / "home"))

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["panza", *map(str, words)])
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def imported(run: Run, mailbox: Path) -> Run:
    assert run("import", mailbox, "--me", ME)[0] == 0
    return run


def test_import_in_words_and_as_json(run: Run, mailbox: Path) -> None:
    assert run("import", mailbox, "--me", ME)[1] == "80 new mails of 80, 40 sent by you.\n"
    assert json.loads(run("import", mailbox, "--json")[1])["added"] == 0


def test_a_first_import_needs_an_address_and_names_candidates(run: Run, mailbox: Path) -> None:
    status, out, err = run("import", mailbox)
    assert (status, out) == (1, "")
    assert ME in err


def test_an_address_that_sent_nothing_is_pointed_out_and_can_be_taken_back(run: Run, mailbox: Path) -> None:
    _, out, _ = run("import", mailbox, "--me", "typo@example.org")
    assert "None is by you" in out and ME in out
    assert run("import", "--not-me", "typo@example.org", "--me", ME, mailbox)[0] == 0
    assert json.loads(run("status", "--json")[1])["me"] == [ME]


def test_mails_that_were_not_used_are_listed_by_reason(run: Run, tmp_path: Path) -> None:
    box = tmp_path / "box.mbox"
    box.write_bytes(
        b"From a@example.com Mon Jan  8 09:00:00 2024\nFrom: Mara <"
        + ME.encode()
        + b">\nMessage-ID: <one@example.org>\n"
        b"Auto-Submitted: auto-replied\n\nI am away.\n\n"
        b"From a@example.com Mon Jan  8 09:00:00 2024\nFrom: Mara <"
        + ME.encode()
        + b">\nMessage-ID: <two@example.org>\n\nHello there.\n"
    )
    assert json.loads(run("import", box, "--me", ME, "--json")[1])["dropped"] == {"automatic reply": 1}
    items = json.loads(run("import", "--dropped", "automatic reply", "--json")[1])["items"]
    assert [i["mail"] for i in items] == ["one@example.org"]
    status, out, err = run("import", "--dropped", "magic")
    assert (status, out) == (1, "") and "the reasons are automatic reply" in err


def test_playback_by_rules_can_be_shown_and_started_over(imported: Run) -> None:
    report = json.loads(imported("playback", "--tries", 0, "--json")[1])
    assert report["pairs"] == 40 and report["by"] == {"extractive": 40}
    pairs = json.loads(imported("playback", "--show", 3, "--json")[1])["pairs"]
    assert len(pairs) == 3 and all(p["instruction"] and p["mail"] for p in pairs)
    assert pairs[-1]["instruction"] in imported("playback", "--show", 1)[1]
    file = Path(report["file"])
    file.write_text(file.read_text().replace("budget", "BUDGET"))
    imported("playback", "--tries", 0, "--again")
    assert "BUDGET" not in file.read_text() and "BUDGET" in file.with_suffix(".jsonl.old").read_text()


def test_inbox_gives_whole_message_ids(imported: Run) -> None:
    mails = json.loads(imported("inbox", "--limit", 5, "--json")[1])["mails"]
    assert len(mails) == 5 and mails[0]["date"] >= mails[-1]["date"]
    assert mails[0]["id"] in imported("inbox", "--limit", 5)[1].split()
    assert imported("inbox", "no-such-word-anywhere")[1] == ""


def test_status_names_the_home(imported: Run, tmp_path: Path) -> None:
    state = json.loads(imported("status", "--json")[1])
    assert (state["mails"], state["sent"], state["adapter"]) == (80, 40, "")
    assert state["home"] == str(tmp_path / "home")


def test_flags_come_from_the_config(run: Run) -> None:
    help_text = run("train", "--help")[1]
    for flag in ("--rank", "--lr", "--epochs", "--batch-tokens", "--raft", "--seed"):
        assert flag in help_text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("train", "--epochs", 0), "--epochs 0 is too small"),
        (("playback", "--batch", 0), "--batch 0 is too small"),
        (("import", "/no/such/file", "--me", ME), "/no/such/file"),
        (("playback",), "There is no sent mail to learn from"),
    ],
)
def test_a_mistake_is_one_sentence(run: Run, words: tuple[object, ...], sentence: str) -> None:
    status, out, err = run(*words)
    assert (status, out) == (1, "")
    assert sentence in err and len(err.strip().splitlines()) == 1


def test_a_home_that_is_a_file_and_broken_settings_are_sentences(run: Run, tmp_path: Path, mailbox: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "cannot be Panza's folder" in run("status", "--home", tmp_path / "file")[2]
    run("import", mailbox, "--me", ME)
    (tmp_path / "home" / "settings.json").write_text("{")
    assert "settings.json" in run("status")[2]


def test_a_bug_is_told_without_the_words_of_the_exception(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise ValueError("the words of a mail")

    monkeypatch.setattr(cli, "open_home", fails)
    status, out, err = run("status")
    assert status == 1 and "ValueError at test_cli.py:" in err and "words of a mail" not in err + out


def test_wrong_usage_is_exit_2(run: Run) -> None:
    assert run("draft")[0] == 2
    assert run("no-such-verb")[0] == 2
