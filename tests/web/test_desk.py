"""The desk without a browser: what each button asks for, and what stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fake_assistant import Writer, mails

from panza.home import open_home
from panza.prompt import length_class
from panza.types import UserError
from panza.web.desk import CHANGES, DRAFT, Desk, read_addresses, read_paths


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(Writer(open_home(tmp_path), mails()))


def write(desk: Desk, button: str) -> str:
    work = desk.write(CHANGES[button])
    list(work.follow(every=0))
    assert not work.error
    return desk.letter.text


def test_picking_a_mail_fills_recipient_and_subject_and_keeps_the_instruction(desk: Desk):
    desk.keep(instruction="yes to both")
    desk.pick("3@test")
    letter = desk.letter
    assert (letter.to, letter.subject) == ("Tom Okafor <tom@okafor.example>", "Re: Offsite: who drives?")
    assert letter.instruction == "yes to both"
    desk.pick("")
    assert (desk.letter.to, desk.letter.subject, desk.letter.reply_to) == ("", "", "")


def test_draft_again_shorter_longer_ask_for_what_they_say(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("panza.web.desk.random.randrange", lambda n: 1)  # few seeds write the greedy draft again
    desk.keep(instruction="tell Tom that I drive", to="Tom")
    first = write(desk, "Draft")
    assert desk.request.seed is None and desk.request.length == ""
    second = write(desk, "Again")
    assert desk.request.seed is not None and second != first
    seed, classes = desk.request.seed, ["very short", "short", "medium", "long"]
    place = classes.index(length_class(second))
    longer = write(desk, "Longer")
    assert desk.request.length == classes[place + 1] and desk.request.seed == seed
    assert len(longer) > len(second)
    write(desk, "Shorter")
    assert desk.request.length == classes[classes.index(length_class(longer)) - 1]


def test_shorter_counts_from_the_words_on_the_page_not_from_the_last_request(desk: Desk):
    desk.keep(instruction="tell Tom that I drive")
    write(desk, "Draft")
    desk.keep(text="word " * 90)
    write(desk, "Shorter")
    assert desk.request.length == "medium"


def test_the_ends_of_the_scale_say_so_and_leave_the_text(desk: Desk):
    desk.keep(instruction="tell Tom that I drive", text="Yes.")
    with pytest.raises(UserError, match="already very short"):
        desk.write(CHANGES["Shorter"])
    desk.keep(text="word " * 100)
    with pytest.raises(UserError, match="already long"):
        desk.write(CHANGES["Longer"])
    assert desk.letter.text == "word " * 100 and not desk.running(DRAFT)


def test_a_new_draft_can_be_swapped_with_the_edited_text_before_it(desk: Desk):
    desk.keep(instruction="tell Tom that I drive", text="My own words.")
    drafted = write(desk, "Draft")
    desk.swap()
    assert desk.letter.text == "My own words."
    desk.swap()
    assert desk.letter.text == drafted


def test_a_suggested_subject_gives_way_to_the_next_suggestion_but_a_typed_one_stays(desk: Desk):
    desk.keep(instruction="tell Tom that I drive")
    write(desk, "Draft")
    suggested = desk.letter.subject
    desk.keep(instruction="ask Anna about the contract")
    write(desk, "Draft")
    assert suggested and desk.letter.subject not in ("", suggested)
    desk.keep(subject="My subject")
    write(desk, "Again")
    assert desk.request.subject == desk.letter.subject == "My subject"
    write(desk, "Again")
    assert desk.request.subject == desk.letter.subject == "My subject"


def test_without_an_instruction_nothing_starts(desk: Desk):
    with pytest.raises(UserError, match="few words"):
        desk.write(CHANGES["Draft"])


def test_one_piece_of_work_at_a_time(desk: Desk):
    desk.assistant.gate.shut()
    desk.keep(instruction="tell Tom that I drive", text="mine")
    work = desk.write(CHANGES["Draft"])
    with pytest.raises(UserError, match="still writing a draft"):
        desk.learn()
    with pytest.raises(UserError, match="still writing a draft"):
        desk.write(CHANGES["Again"])
    assert desk.request.seed is None, "a refused request must not replace the one in hand"
    desk.stop()
    list(work.follow())
    learning = desk.learn()
    desk.stop()
    desk.assistant.gate.let()
    list(learning.follow())
    assert "Stopped" in learning.error


def test_stop_comes_through_within_a_token(desk: Desk):
    gate = desk.assistant.gate
    gate.shut()
    gate.let(3)
    desk.keep(instruction="tell Tom that I drive")
    work = desk.write(CHANGES["Draft"])
    follower = work.follow(every=0)
    next(draft for draft in follower if draft.tokens == 3)
    desk.stop()
    gate.let()
    *_, last = follower
    assert last.done and last.tokens <= 4 and desk.letter.text == last.text


def test_the_chosen_mail_stays_in_the_picker_whatever_is_searched(desk: Desk):
    desk.pick("3@test")
    assert [m.id for m in desk.found("harbor")] == ["3@test", "2@test"]
    assert all(not m.mine for m in desk.found(""))


def test_paths_and_addresses_are_checked_before_work_starts(tmp_path: Path):
    (tmp_path / "a b.mbox").touch()
    assert read_paths(f' "{tmp_path}/a b.mbox" \n\n{tmp_path}\n') == [tmp_path / "a b.mbox", tmp_path]
    with pytest.raises(UserError, match="nowhere.mbox"):
        read_paths("/nowhere.mbox")
    with pytest.raises(UserError, match="path of an mbox"):
        read_paths(" \n")
    assert read_addresses("a@b.c, d@e.f\ng@h.i") == ["a@b.c", "d@e.f", "g@h.i"]
    with pytest.raises(UserError, match="ruth"):
        read_addresses("ruth")


def test_a_draft_request_survives_a_mail_without_name_or_subject(desk: Desk):
    bare = replace(mails()[1], id="bare", sender=replace(mails()[1].sender, name=""), subject="")
    desk.assistant.mails["bare"] = bare
    desk.pick("bare")
    assert (desk.letter.to, desk.letter.subject) == (bare.sender.email, "")
