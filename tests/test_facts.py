"""What counts as a fact, and when another text keeps it."""

import pytest

from panza.facts import facts, kept

FOUND = [
    ("tell Anna the review moves to Thursday 3pm", ["Anna", "Thursday", "3pm"]),
    ("Tell Anna Lee that I can't meet at 3.", ["Anna Lee", "at 3"]),
    ("May I come on May 12, 2001 or 6/7?", ["May 12, 2001", "6/7"]),
    ("Ask Kevin for $5,000 and 3 tickets to New York.", ["Kevin", "$5,000", "3", "New York"]),
    (
        "Write Dr. Smith and J. Lee: 15:30, 1,000 units, 12.5% by Fri",
        ["Smith", "J. Lee", "15:30", "1,000", "12.5%", "Fri"],
    ),
    ("Anna's report is late. Denver is cold. I love Denver.", ["Anna", "Denver"]),
    ("Please don't. Don't go. I'm OK. Let's see. It's fine. However, no.", []),
    ("PLEASE CALL ME ABOUT THE MEETING ON MONDAY", ["MONDAY"]),
    (
        "call 713-853-5660 or mail bob@x.org, see http://x.org/a?b=1.",
        ["713-853-5660", "bob@x.org", "http://x.org/a?b=1"],
    ),
    ("Use the EOL numbers for Q3 in Room 12B", ["EOL", "Q3", "Room", "12B"]),
    ("two of the three; fifty dollars; the 12th", ["two", "three", "fifty dollars", "12th"]),
    ("Thursday, thursday, Thurs", ["Thursday"]),
    ("move it from 2024-05-01 at 12.5", ["2024-05-01", "12.5"]),
    ("fly to the U.S. on flight A or plan B", ["U.S."]),
    ("", []),
    ("\n \0 ' - . '", []),
]


@pytest.mark.parametrize(("text", "expected"), FOUND, ids=[t[:30] for t, _ in FOUND])
def test_facts_of_a_text(text, expected):
    assert facts(text) == expected


SAME = [
    ("3pm", "at 3 pm"), ("3pm", "3:00 PM"), ("3 p.m.", "15:00"), ("3pm", "at 3"), ("at 3", "3pm"), ("noon", "12 pm"),
    ("Thursday", "THURSDAY"), ("Thursday", "Thurs."), ("Thu", "on thursday"),
    ("May 12", "12th of May"), ("May 12", "5/12"), ("May 12, 2001", "May 12"), ("2001-05-12", "May 12th"),
    ("1,000", "1000 units"), ("1000", "1,000."), ("3", "3."), ("3.5", "3.50"), ("two", "2 of"), ("12th", "12"),
    ("$5k", "5000 dollars"), ("12%", "12 percent"), ("5", "5pm"),
    ("Anna", "anna's"), ("Anna Lee", "Anna\nLee,"), ("New York", "new york."), ("Will", "Will,"),
    ("713-853-5660", "(713) 853-5660"), ("bob@x.org", "<BOB@x.org>"),
]  # fmt: skip
DIFFERENT = [
    ("3pm", "3am"), ("3pm", "13pm"), ("3:30", "3:45"), ("May 12", "May 13"),
    ("1000", "11,000"), ("5", "5.5"), ("5", "15"), ("$500", "€500"), ("12%", "12 units"), ("12", "2"),
    ("Will", "I will"), ("Ann", "Anna"), ("New York", "new cars in York"), ("Anna", ""), ("", "Anna"),
]  # fmt: skip


@pytest.mark.parametrize(("fact", "text"), SAME)
def test_another_form_keeps_the_fact(fact, text):
    assert kept(fact, text)


@pytest.mark.parametrize(("fact", "text"), DIFFERENT)
def test_another_fact_does_not_keep_it(fact, text):
    assert not kept(fact, text)


@pytest.mark.parametrize("text", [t for t, _ in FOUND])
def test_a_text_keeps_its_own_facts(text):
    assert all(kept(fact, text) for fact in facts(text))
