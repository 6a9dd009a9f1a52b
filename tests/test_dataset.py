"""From pairs to examples: no leak between parts, none from the future, and prompts that fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panza import models
from panza.dataset import build, compose, split
from panza.mail import Store, import_mail
from panza.playback import PlaybackConfig, play_back, read_pairs
from panza.retrieve import Retriever
from panza.types import Address, Message, PlaybackPair
from tests.conftest import ME


def pair(i: int, thread: str) -> PlaybackPair:
    return PlaybackPair(Message(f"m{i}", i, Address("", "a@x"), (), (), "", "body", thread=thread), "do it", "edited")


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60))
def test_a_thread_is_in_one_part_and_later_parts_end_later(threads: list[int]) -> None:
    pairs = [pair(i, f"t{t}") for i, t in enumerate(threads)]
    parts = split(pairs)
    sets = [{p.message.thread for p in part} for part in (parts.train, parts.validation, parts.heldout)]
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
    assert sorted(p.message.id for part in (parts.train, parts.validation, parts.heldout) for p in part) == sorted(
        p.message.id for p in pairs
    )
    last = [
        max((p.message.date for p in part), default=None) for part in (parts.train, parts.validation, parts.heldout)
    ]
    known = [d for d in last if d is not None]
    assert known == sorted(known)


def test_shares_are_about_what_was_asked() -> None:
    parts = split([pair(i, f"t{i}") for i in range(100)])
    assert (len(parts.train), len(parts.validation), len(parts.heldout)) == (70, 10, 20)


@pytest.mark.parametrize("sizes", [[5, 1, 1, 1, 1, 1], [50, *[1] * 60], [10], [5, 5], [3, 3, 3]])
def test_a_long_latest_thread_leaves_no_part_empty_that_could_be_filled(sizes: list[int]) -> None:
    """sizes: of the threads, the latest first."""
    date, pairs = 1000, []
    for t, size in enumerate(sizes):
        pairs += [pair(date := date - 1, f"t{t}") for _ in range(size)]
    parts = split(pairs)
    filled = [bool(parts.train), bool(parts.validation), bool(parts.heldout)]
    assert filled[: min(3, len(sizes))] == [True] * min(3, len(sizes))


def test_a_share_of_nothing_is_nothing() -> None:
    parts = split([pair(i, f"t{i}") for i in range(20)], heldout_share=0.0, validation_share=0.0)
    assert (len(parts.train), len(parts.validation), len(parts.heldout)) == (20, 0, 0)


@pytest.fixture(scope="module")
def home(
    mailbox: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Store, list[PlaybackPair], Retriever]]:
    folder = tmp_path_factory.mktemp("home")
    store = Store(folder / "mail.db")
    import_mail(store, [mailbox], [ME])
    play_back(store.messages(mine=True), None, folder / "p.jsonl", PlaybackConfig(tries=0))
    yield store, read_pairs(folder / "p.jsonl", store.messages(mine=True)), Retriever(store, folder / "vectors")


def test_a_prompt_holds_the_mail_answered_but_neither_the_answer_nor_the_future(home, tiny_base: Path) -> None:
    store, pairs, retriever = home
    tokenizer = models.load(str(tiny_base)).chat_tokenizer
    assert len(pairs) == 40
    by_body = {m.body: m for m in store.messages()}
    retrieved = 0
    for p, example in zip(
        pairs, build(pairs, store, retriever, tokenizer, sender="Mara", most_tokens=900), strict=True
    ):
        text = example.chat[-1]["content"]
        assert "<answer_this>" in text and "when can we talk" in text
        assert example.answer == p.message.body
        blocks = [b.split("\n\n", 1)[-1].strip() for b in text.split("<mail>")[1:]]
        for block in (b.split("\n</mail>")[0] for b in blocks):
            found = by_body[block]
            assert found.date < p.message.date and found.thread != p.message.thread
            retrieved += 1
    assert retrieved > 20


def test_threads_kept_aside_stand_in_no_prompt(home, tiny_base: Path) -> None:
    store, pairs, retriever = home
    tokenizer = models.load(str(tiny_base)).chat_tokenizer
    aside = frozenset(p.message.thread for p in pairs[::2])
    by_body = {m.body: m for m in store.messages()}
    shown = 0
    for example in build(pairs[20:], store, retriever, tokenizer, sender="Mara", most_tokens=900, kept_aside=aside):
        for block in example.chat[-1]["content"].split("<mail>")[1:]:
            assert by_body[block.split("\n\n", 1)[-1].strip().split("\n</mail>")[0]].thread not in aside
            shown += 1
    assert shown > 10


def test_raft_is_a_probability(home, tiny_base: Path) -> None:
    store, pairs, retriever = home
    tokenizer = models.load(str(tiny_base)).chat_tokenizer
    later = pairs[10:]

    def share(raft: float) -> float:
        made = build(later, store, retriever, tokenizer, sender="Mara", most_tokens=900, raft=raft)
        return sum("<mail>" in e.chat[-1]["content"] for e in made) / len(made)

    assert share(0.0) == 0.0 and share(1.0) > 0.9 and 0.2 < share(0.5) < 0.8


@pytest.mark.parametrize("room", [40, 120, 400, 5000])
def test_what_does_not_fit_is_dropped_and_the_instruction_stays(room: int) -> None:
    mails = [Message("", 0, Address("A", ""), (), (), "", "words " * 60) for _ in range(4)]
    chat, kept = compose(
        "say that it works", sender="Mara", recipient="Anna", subject="", length="", thread=mails[:2], retrieved=mails[2:],
        fits=lambda chat: len(chat[-1]["content"].split()) <= room,
    )  # fmt: skip
    text = chat[-1]["content"]
    assert "Instruction: say that it works" in text
    assert len(text.split()) <= room
    assert kept == mails[2 : 2 + len(kept)]
    assert not kept or text.count("<answer_this>") == 1  # the mail to answer goes last
