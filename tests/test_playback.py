"""Data playback: what a model may answer, what is refused and why, and a file that survives a kill and an editor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from panza import models
from panza.playback import PlaybackConfig, play_back, read_pairs, reject
from panza.types import Address, Message, UserError

BODY = "Hi Anna,\n\nthe quarterly review of the Elm Street project moves to Thursday at 3pm because Bob Marsh is away.\n\nMara"
RULES_ALONE = PlaybackConfig(tries=0)


def mail(i: int, body: str = "") -> Message:
    text = body or f"Hi Anna,\n\nthe report number {i} is ready for Tuesday.\n\nMara"
    return Message(f"m{i}@x", i, Address("Mara", "mara@x"), (Address("Anna", "anna@x"),), (), "", text, mine=True)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("Tell Anna that the Elm Street review is now Thursday 3pm, Bob Marsh being away.", ""),
        ("Elm Street review, Thursday 3pm, Bob Marsh away", ""),
        ("", "empty"),
        (" . ", "empty"),
        ("Instruction: tell Anna the review is Thursday 3pm", "prefix left"),
        ("Tell Anna.\n\nHi Anna,", "too long"),
        ("Say this. Say that. Say more. Say Thursday 3pm.", "too long"),
        ("Say the quarterly review of the Elm Street project moves to Thursday at 3pm because of Bob Marsh", "copied"),
        ("Tell Anna the review moves", "facts missing"),
        ("Elm Street review, Thursday 3pm, Bob Marsh in Paris", "facts invented"),
        (
            "tell anna about Elm Street, Thursday 3pm, Bob Marsh " + "and about the moved review " * 5,
            "longer than the mail",
        ),
    ],
)
def test_an_answer_is_taken_or_refused_for_a_reason(answer: str, reason: str) -> None:
    assert reject(answer, mail(1, BODY)) == reason


def test_every_sent_mail_gets_an_instruction_even_from_a_model_that_babbles(tiny_base: Path, tmp_path: Path) -> None:
    file = tmp_path / "playback.jsonl"
    messages = [mail(i) for i in range(9)]
    report = play_back(messages, models.load(str(tiny_base)), file, PlaybackConfig(tries=1, batch=4))
    pairs = read_pairs(file, messages)
    assert report.pairs == len(pairs) == 9
    assert sum(report.by.values()) == 9
    assert sum(report.rejected.values()) + report.by.get("model", 0) == 9
    assert all("Tuesday" in p.instruction for p in pairs)


def test_short_long_and_repeated_mails_are_counted_by_reason(tmp_path: Path) -> None:
    messages = [mail(1), mail(2, "ok"), mail(3, "word " * 400), mail(4, mail(1).body)]
    report = play_back(messages, None, tmp_path / "p.jsonl", RULES_ALONE)
    assert report.pairs == 1
    assert report.rejected == {"mail too short": 1, "mail too long": 1, "mail repeated": 1}


def test_a_second_run_adds_only_new_mail_and_keeps_edits(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    play_back([mail(1), mail(2)], None, file, RULES_ALONE)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[0]["instruction"] = "my own words"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    play_back([mail(1), mail(2), mail(3)], None, file, RULES_ALONE)
    pairs = read_pairs(file, [mail(1), mail(2), mail(3)])
    assert [p.message.id for p in pairs] == ["m1@x", "m2@x", "m3@x"]
    assert pairs[0].instruction == "my own words"


def test_a_line_cut_by_a_kill_is_played_back_again(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    play_back([mail(1), mail(2)], None, file, RULES_ALONE)
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    play_back([mail(1), mail(2)], None, file, RULES_ALONE)
    assert file.read_bytes() == whole


@pytest.mark.parametrize("mark", ["\u0085", "\u2028", "\u2029", "\x0c"])
def test_odd_line_ends_in_a_mail_lose_no_pair(tmp_path: Path, mark: str) -> None:
    file = tmp_path / "p.jsonl"
    messages = [mail(1, f"the first report{mark}and the second"), mail(2), mail(3)]
    for _ in range(2):
        assert play_back(messages, None, file, RULES_ALONE).pairs == 3
    assert len(read_pairs(file, messages)) == 3
    assert file.read_bytes().count(b"\n") == 3


def test_a_line_broken_by_an_editor_is_named(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"message_id": "a", "instruction": "b"}\nsecret words\n')
    with pytest.raises(UserError, match="Line 2") as caught:
        read_pairs(file, [])
    assert "secret" not in str(caught.value)
