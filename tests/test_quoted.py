"""The mail quoted under another one, read as a message: its writer and its words, without header lines."""

from __future__ import annotations

import pytest

from panza.mail.quoted import quoted_message
from panza.types import Address, Message

QUOTES = {
    "gmail": "On Mon, Jan 8, 2024 at 9:00 AM Anna Lee <anna@example.com> wrote:\n> Can you come on Monday?\n> Anna",
    "outlook": (
        " -----Original Message-----\nFrom: \tLee, Anna  \nSent:\tMonday, January 8, 2024 9:00 AM\nTo:\tMara Lindt\n"
        "Subject:\tPlan\n\nCan you come on Monday?\nAnna"
    ),
    "notes": "Anna Lee\n01/08/2024 09:00 AM\nTo:\tMara Lindt/HOU/ACME@ACME\ncc:\nSubject:\tPlan\n\nCan you come on Monday?\nAnna",
    "german": "Am 08.01.2024 um 09:00 schrieb Anna Lee <anna@example.com>:\n> Can you come on Monday?\n> Anna",
    "french": "Le 8 janvier 2024 à 09:00, Anna Lee <anna@example.com> a écrit :\n> Can you come on Monday?\n> Anna",
}


def answer(quoted: str) -> Message:
    mara, anna = Address("Mara Lindt", "mara@example.org"), Address("Anna Lee", "anna@example.com")
    return Message("id", 1, mara, (anna,), (), "Re: Plan", "Yes.", quoted=quoted)


@pytest.mark.parametrize("form", QUOTES)
def test_writer_and_words(form: str) -> None:
    parent = quoted_message(answer(QUOTES[form]))
    assert parent is not None
    assert parent.sender.label == "Anna Lee"
    assert parent.body.replace("\n\n", "\n") == "Can you come on Monday?\nAnna"


def test_deeper_quotes_are_left_out() -> None:
    parent = quoted_message(
        answer(QUOTES["gmail"] + "\n> On Sun, Jan 7, 2024 at 9:00 AM Bob <bob@x> wrote:\n>> old words")
    )
    assert parent is not None and "old words" not in parent.body


@pytest.mark.parametrize("quoted", ["", "   \n>\n", "-----Original Message-----\nFrom: Anna\nSubject: x\n"])
def test_nothing_readable_is_none(quoted: str) -> None:
    assert quoted_message(answer(quoted)) is None
