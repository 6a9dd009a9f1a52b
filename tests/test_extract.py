"""Instructions drawn by rules: orders, not copies; facts kept; never empty."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panza.extract import extract, middle
from panza.orders import Reader, order
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
        ("When is the meeting?", "Ask Anna when meeting is"),
        ("Sorry for the delay.", "Apologise for delay"),
        ("Attached is the contract for Elm Street.", "Send contract for Elm Street"),
    ],
)
def test_a_sentence_becomes_an_order(body: str, instruction: str) -> None:
    assert extract(mail(body)) == instruction


@pytest.mark.parametrize(
    ("sentence", "they", "he"),
    [
        ("Can you drive us to Oslo at 6am?", "ask Rob to drive us to Oslo at 6am", "ask Rob to drive us to Oslo at 6am"),
        ("Did you get my message?", "ask Rob if they got my message", "ask Rob if he got my message"),
        ("Are you coming on Friday?", "ask Rob if they are coming on Friday", "ask Rob if he is coming on Friday"),
        ("Is the meeting still on?", "ask Rob if the meeting is still on", "ask Rob if the meeting is still on"),
        ("Has Bob signed it?", "ask Rob if Bob has signed it", "ask Rob if Bob has signed it"),
        ("What time are you leaving?", "ask Rob what time they are leaving", "ask Rob what time he is leaving"),
        ("Who is coming?", "ask Rob who is coming", "ask Rob who is coming"),
        ("Let me know if you need your copy.", "ask Rob to let me know if they need their copy", "ask Rob to let me know if he needs his copy"),
        ("Please don't send it yet.", "ask Rob not to send it yet", "ask Rob not to send it yet"),
        ("Let's meet on Friday.", "suggest that we meet on Friday", "suggest that we meet on Friday"),
        ("I will call you tomorrow.", "say I will call them tomorrow", "say I will call him tomorrow"),
        ("Am I supposed to know?", "ask Rob if I am supposed to know", "ask Rob if I am supposed to know"),
        ("Rob, I think you should know that you won.", "tell Rob they should know that they won", "tell Rob he should know that he won"),
    ],
)  # fmt: skip
def test_persons_are_shifted_and_questions_turned(sentence: str, they: str, he: str) -> None:
    assert order(sentence, Reader("Rob")) == they
    assert order(sentence, Reader("Rob", "he")) == he


def test_an_order_can_be_put_in_several_ways() -> None:
    ways = {order("I can't make it on Tuesday.", Reader("Rob"), random.Random(n).choice) for n in range(40)}
    assert len(ways) > 4
    assert all("Tuesday" in w and "can't" in w for w in ways)


def test_only_the_first_order_names_the_reader() -> None:
    assert order("Please call Bob.", Reader("Rob", "he"), again=True) == "ask him to call Bob"


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
