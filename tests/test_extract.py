"""Instructions drawn by rules: orders, not copies; facts kept; never empty."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panza.extract import extract, middle
from panza.types import Address, Message

ANNA = Address("Anna Lee", "anna@example.com")


def mail(body: str) -> Message:
    return Message("id", 0, Address("Mara", "mara@example.org"), (ANNA,), (), "", body)


@pytest.mark.parametrize(
    ("body", "instruction"),
    [
        ("Anna,\n\nThe review moves to Thursday at 3pm.\n\nThanks,\nMara", "Tell Anna review moves to Thursday at 3pm"),
        ("Can you send me the report by Friday?", "Ask Anna to send me report by Friday"),
        ("Thanks for your help with the budget.", "Thank Anna for their help with budget"),
        ("Please let me know if you can come.", "Ask Anna to let me know if they can come"),
        ("When is the meeting?", "Ask when is meeting"),
        ("Sorry for the delay.", "Apologise for delay"),
        ("Attached is the contract for Elm Street.", "Send contract for Elm Street"),
    ],
)
def test_a_sentence_becomes_an_order(body: str, instruction: str) -> None:
    assert extract(mail(body)) == instruction


def test_keywords_keep_names_days_and_numbers() -> None:
    words = extract(
        mail("Hi Anna, we meet Bob Marsh on Tuesday at 10:30 in room 412 about the 1,000 chairs."), "keywords"
    )
    for fact in ("Bob Marsh", "Tuesday", "10:30", "412", "1,000"):
        assert fact in words


def test_other_languages_get_keywords() -> None:
    words = extract(mail("Hallo Anna, das Treffen mit Herrn Weber findet am Donnerstag um 15 Uhr in Köln statt."))
    assert "," in words
    assert "Donnerstag" in words and "Köln" in words


def test_greeting_and_sign_off_are_not_part_of_the_middle() -> None:
    assert middle("Hi Anna,\n\nit works.\n\nAll the best,\nMara") == "it works."
    assert middle("Thanks!") == "Thanks!"


@settings(max_examples=150, deadline=None)
@given(
    st.text(min_size=1, max_size=400).filter(lambda t: any(c.isalnum() for c in t)),
    st.sampled_from(["sentence", "keywords"]),
)
def test_any_text_with_a_word_gives_one_line(text: str, style: str) -> None:
    instruction = extract(mail(text), style)
    assert instruction.strip()
    assert "\n" not in instruction
