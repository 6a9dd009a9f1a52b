"""The writer: who is written to, under which subject, after which mails; and that injected mail stays data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from panza.draft import Writer, loop
from panza.mail import Store, import_mail
from panza.models import Sampling
from panza.prompt import Chat
from panza.retrieve import Retriever
from panza.types import Draft, DraftRequest, UserError
from tests.conftest import ME


class Parrot:
    """A model that answers with fixed words and remembers what it was asked."""

    name, context = "parrot", 2000

    def __init__(self, answer: str = "Hello Anna,\n\nyes.\n\nAll the best,\nMara") -> None:
        self.answer, self.asked = answer, []

    def encode(self, chat: Chat) -> list[int]:
        return list(range(sum(len(m["content"].split()) for m in chat)))

    def generate(self, chat: Chat, sampling: Sampling, stopped: Callable[[], bool]) -> Iterator[str]:
        self.asked.append((chat, sampling))
        for word in self.answer.split(" "):
            if stopped():
                return
            yield word + " "


@pytest.fixture(scope="module")
def store(mailbox: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("home") / "mail.db")
    import_mail(store, [mailbox], [ME])
    return store


@pytest.fixture
def parrot() -> Parrot:
    return Parrot()


@pytest.fixture
def writer(parrot: Parrot, store: Store, tmp_path: Path) -> Writer:
    return Writer(parrot, store, Retriever(store, tmp_path / "vectors"), store.my_name)


def last(drafts: Iterator[Draft]) -> Draft:
    return list(drafts)[-1]


def asked(parrot: Parrot) -> str:
    return parrot.asked[0][0][-1]["content"]


def test_snapshots_grow_and_the_last_is_done(writer: Writer) -> None:
    drafts = list(writer.draft(DraftRequest("say yes", to="Anna")))
    for before, after in zip(drafts, drafts[1:-1], strict=False):
        assert after.text.startswith(before.text) and len(after.text) > len(before.text)
    assert [d.done for d in drafts] == [False] * (len(drafts) - 1) + [True]
    assert drafts[-1].text == "Hello Anna,\n\nyes.\n\nAll the best,\nMara"
    assert drafts[-1].tokens == len(drafts) - 1


def test_a_reply_goes_to_the_sender_in_the_thread_under_its_subject(
    writer: Writer, parrot: Parrot, store: Store
) -> None:
    mail = store.get("ask-5@example.com")
    draft = last(writer.draft(DraftRequest("it works", reply_to="<ask-5@example.com>")))
    assert draft.subject == "Re: The " + mail.subject.removeprefix("The ")
    text = asked(parrot)
    assert f"To: {mail.sender.name}" in text
    assert "when can we talk" in text.split("<answer_this>")[1]
    assert "ask-5@example.com" not in draft.sources and "answer-5@example.org" not in draft.sources
    assert len(parrot.asked) == 1, "a known subject is not asked for"


def test_a_new_mail_gets_a_subject_from_the_model(writer: Writer, parrot: Parrot) -> None:
    parrot.answer = "Subject: Monday\nmore"
    assert last(writer.draft(DraftRequest("say yes", to="Anna"))).subject == "Monday"


def test_a_given_subject_stays(writer: Writer) -> None:
    assert last(writer.draft(DraftRequest("say yes", reply_to="ask-5@example.com", subject="Other"))).subject == "Other"


@pytest.mark.parametrize(
    ("to", "shown"),
    [
        ("Anna Lee <anna.lee@example.com>", "To: Anna Lee"),
        ("anna.lee@example.com", "To: Anna Lee"),
        ("Anna", "To: Anna"),
        ('"Lee, Anna" <a@x.org>', "To: Lee, Anna"),
    ],
)
def test_the_recipient_is_a_name(writer: Writer, parrot: Parrot, to: str, shown: str) -> None:
    last(writer.draft(DraftRequest("say yes", to=to)))
    assert shown in asked(parrot).split("\n")
    assert "@" not in asked(parrot).split("Instruction:")[0].split("</mail>")[-1]


def test_sources_are_the_retrieved_mails_that_stand_in_the_prompt(writer: Writer, parrot: Parrot, store: Store) -> None:
    draft = last(writer.draft(DraftRequest("ask about the workshop number", to="Anna Lee <anna.lee@example.com>")))
    assert draft.sources
    for source in draft.sources:
        assert store.get(source).body.split("\n")[0] in asked(parrot)
    assert asked(parrot).count("<mail>") == len(draft.sources)


def test_an_instruction_that_fills_the_context_leaves_no_room_for_mails(writer: Writer, parrot: Parrot) -> None:
    draft = last(writer.draft(DraftRequest("budget " * 1690, reply_to="ask-5@example.com")))
    assert draft.sources == ()
    assert asked(parrot).count("budget") >= 1690


def test_greedy_without_a_seed_and_sampled_with_one(writer: Writer, parrot: Parrot) -> None:
    last(writer.draft(DraftRequest("yes", to="Anna")))
    last(writer.draft(DraftRequest("yes", to="Anna", seed=7)))
    samplings = [s for _, s in parrot.asked if s.max_tokens > 100]
    assert samplings[0].temperature == 0 and samplings[1].temperature > 0 and samplings[1].seed == 7


def test_stop_keeps_what_was_written(writer: Writer) -> None:
    seen: list[Draft] = []
    for draft in writer.draft(DraftRequest("say yes", to="Anna"), stopped=lambda: len(seen) >= 2):
        seen.append(draft)
    assert seen[-1].done and seen[-1].text == "Hello Anna,\n\nyes.\n\nAll"


@pytest.mark.parametrize(
    "piece", ["See you there. ", "x ", "- one more point\n", "".join(f"word{n} " for n in range(25))]
)
def test_a_loop_is_stopped_and_its_piece_stays_once(writer: Writer, parrot: Parrot, piece: str) -> None:
    parrot.answer = "Hello Anna,\n\nyes.\n" + piece * 300
    draft = last(writer.draft(DraftRequest("say yes", to="Anna", subject="s")))
    assert draft.done and draft.tokens < 4 * len(piece.split()) + 70, "it was stopped"
    assert draft.text == "Hello Anna,\n\nyes.\n" + piece.strip()


@pytest.mark.parametrize("piece", ["ha", "漢字を", "0", "🙂👍x", "-=-"])
def test_a_loop_needs_no_words(piece: str) -> None:
    assert loop("Yes. " + piece * 120) == len("Yes. " + piece)


@pytest.mark.parametrize(
    "text",
    [
        "Thanks, thanks, thanks! See you on Friday.",
        "ha ha ha ha ha ha",
        "Agenda\n" + "-" * 72,
        "".join(f"- please send the signed contract to person {n} of the list\n" for n in range(9)),
        "1000000000000000000000",
        "",
    ],
)
def test_what_is_no_loop_stays(text: str) -> None:
    assert [loop(text[:n]) for n in range(len(text) + 1)] == [None] * (len(text) + 1)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (DraftRequest("  "), "instruction is empty"),
        (DraftRequest("x", reply_to="no@where"), "no@where"),
        (DraftRequest("x", length="epic"), "'epic' is no length: choose one of very short"),
    ],
)
def test_mistakes(writer: Writer, request_: DraftRequest, message: str) -> None:
    with pytest.raises(UserError, match=message):
        last(writer.draft(request_))
