"""The mail quoted under another one, read as a message: its writer and its words, without header lines."""

from __future__ import annotations

import pytest

from panza.mail.clean import clean
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
    "spanish": "El lun, 8 ene 2024 a las 9:00, Anna Lee (<anna@example.com>) escribió:\n> Can you come on Monday?\n> Anna",
    "italian": "Il giorno lun 8 gen 2024 alle ore 09:00 Anna Lee <anna@example.com> ha scritto:\n> Can you come on Monday?\n> Anna",
    "portuguese": "Em seg., 8 de jan. de 2024 às 09:00, Anna Lee <anna@example.com> escreveu:\n> Can you come on Monday?\n> Anna",
    "dutch": "Op ma 8 jan. 2024 om 09:00 schreef Anna Lee <anna@example.com>:\n> Can you come on Monday?\n> Anna",
    "swedish": "Den mån 8 jan. 2024 kl 09:00 skrev Anna Lee <anna@example.com>:\n> Can you come on Monday?\n> Anna",
    "polish": "pon., 8 sty 2024 o 09:00 Anna Lee <anna@example.com> napisał(a):\n> Can you come on Monday?\n> Anna",
    "wrapped": "On Mon, Jan 8, 2024 at 9:00 AM Anna Lee\n<anna@example.com> wrote:\n> Can you come on Monday?\n> Anna",
    "last name first": 'On Mon, Jan 8, 2024 at 9:00 AM "Lee, Anna" <anna@example.com> wrote:\n> Can you come on Monday?\n> Anna',
    "name first": "Anna Lee <anna@example.com> schrieb am 08.01.2024 um 09:00:\n> Can you come on Monday?\n> Anna",
    "address alone": "On 8 Jan 2024, at 09:00, anna.lee@example.com wrote:\n> Can you come on Monday?\n> Anna",
    "name alone": "Anna Lee wrote:\n> Can you come on Monday?\n> Anna",
    "groupwise": '>>> "Anna Lee" <anna@example.com> 01/08/24 09:00AM >>>\nCan you come on Monday?\nAnna',
    "outlook on the web": (
        "________________________________\n*From:* Anna Lee <anna@example.com>\n*Sent:* Monday, January 8, 2024 9:00 AM\n"
        "*To:* Mara Lindt <mara@example.org>\n*Subject:* Plan\n\nCan you come on Monday?\nAnna"
    ),
    "many recipients": (
        "-----Original Message-----\nFrom: Lee, Anna\nSent: Monday, January 8, 2024 9:00 AM\nTo: Lindt, Mara; "
        + ";\n".join(f"Doe, Jane {i}; Roe, John {i}" for i in range(20))
        + "\nCc: Ott, Ben\nSubject: Plan\n\nCan you come on Monday?\nAnna"
    ),
    "notes on one line": "Anna Lee@ACME on 01/08/2024 09:00:00 AM\nTo: Mara Lindt/HOU/ACME@ACME\ncc:\nSubject: Plan\n\nCan you come on Monday?\nAnna",
    "forwarded, wrapped": (
        "---------------------- Forwarded by Ben Ott/HOU/ACME on 01/08/2024\n03:20 PM ---------------------------\n\n"
        "Anna Lee\n01/08/2024 09:00 AM\nTo:\tBen Ott/HOU/ACME@ACME\ncc:\nSubject:\tPlan\n\nCan you come on Monday?\nAnna"
    ),
    "forwarded, on behalf": (
        "---------- Forwarded message ---------\nFrom: list@example.net [mailto:list@example.net] On Behalf Of Anna Lee\n"
        "Date: Mon, Jan 8, 2024 at 9:00 AM\nSubject: Plan\nTo: Mara Lindt\n\nCan you come on Monday?\nAnna"
    ),
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


@pytest.mark.parametrize("form", QUOTES)
def test_writer_and_words_after_the_import(form: str) -> None:
    """The import takes one `>` off the lines that it keeps."""
    words = clean("Yes, we can.\n\n" + QUOTES[form])
    parent = quoted_message(answer(words.quoted))
    assert parent is not None
    assert (parent.sender.label, parent.body.replace("\n\n", "\n")) == ("Anna Lee", "Can you come on Monday?\nAnna")


def test_a_deeper_quote_keeps_its_mark_after_the_import() -> None:
    parent = quoted_message(answer("On Mon, Jan 8, 2024 at 9:00 AM Anna Lee <anna@example.com> wrote:\n> old\nNew."))
    assert parent is not None and parent.body == "New."


def test_a_mail_that_only_forwards_another_gives_way_to_it() -> None:
    outer = "-----Original Message-----\nFrom: Ott, Ben\nSent: Tuesday, January 9, 2024 9:00 AM\nSubject: FW: Plan\n\n"
    parent = quoted_message(answer(outer + QUOTES["outlook"]))
    assert parent is not None
    assert (parent.sender.label, parent.body.replace("\n\n", "\n")) == ("Anna Lee", "Can you come on Monday?\nAnna")


def test_deeper_quotes_are_left_out() -> None:
    parent = quoted_message(
        answer(QUOTES["gmail"] + "\n> On Sun, Jan 7, 2024 at 9:00 AM Bob <bob@x> wrote:\n>> old words")
    )
    assert parent is not None and "old words" not in parent.body


@pytest.mark.parametrize("quoted", ["", "   \n>\n", "-----Original Message-----\nFrom: Anna\nSubject: x\n"])
def test_nothing_readable_is_none(quoted: str) -> None:
    assert quoted_message(answer(quoted)) is None
