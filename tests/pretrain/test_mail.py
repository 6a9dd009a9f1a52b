"""Mail made clean, swapped and turned into items."""

from __future__ import annotations

import random
import re

import pytest

from panza.facts import facts, kept
from panza.letter import greeting
from panza.types import Address, Message
from pretrain import tokenizer as tk
from pretrain.corpus import Mail, Person, addresses, clean, holds_personal, newest_quoted, part_of, person
from pretrain.names import Names, collect
from pretrain.pairs import Rates, instruct, items
from pretrain.swap import Swap, Unswapped

ANNA, TOM = Person("Annelore", "Kellerman"), Person("Tomsen", "Reedham")  # names that no list holds
ALWAYS_WRITE = Rates(play_back=0, title=0, lower_start=1, letter=0, needed=0)


@pytest.fixture(scope="module")
def names() -> Names:
    return collect([ANNA, TOM])


def mail(body: str, n: int = 0, **other: object) -> Mail:
    return Mail(f"m {n}", "anna.keller@enron.com", ANNA, (TOM,), "Plan", body, **other)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("who", "first", "last"),
    [
        ("eric.bass@enron.com", "Eric", "Bass"),
        ("Mills, Cheryl D", "Cheryl", "Mills"),
        ("d..steffes@enron.com", "Steffes", ""),
        ("H", "H", ""),
        ("john_smith7@example.org", "John", "Smith"),
    ],
)
def test_names_come_from_addresses(who: str, first: str, last: str):
    assert person(who) == Person(first, last)


def test_many_readers_are_told_apart():
    assert [p.first for p in addresses("ann.lee@enron.com, bo.ek@enron.com")] == ["Ann", "Bo"]


WRAPPED = "I will send you the numbers for the second quarter as soon as the auditors\nare done with them.\n\nAnna"


def test_hard_wraps_are_undone_and_paragraphs_stay():
    assert clean(WRAPPED, random.Random(0)).count("\n") == 2


def test_a_list_stays_a_list():
    text = "Please bring the following things to the meeting that we have on next Tuesday:\n- the plan\n- the budget"
    assert clean(text, random.Random(0)).endswith("\n- the plan\n- the budget")


@pytest.mark.parametrize(
    "under",
    [
        "-----Original Message-----\nFrom: Bo\nhello there",
        '"Reed, Tom" <t@x.org> on 02/15/2001 08:26:54 AM\nhello there',
        "Anna Keller\nManager\nFirm Inc.\n(713) 853-1234",
        "> hello there",
    ],
)
def test_quotes_and_signatures_are_cut(under: str):
    text = clean(f"See you on Friday.\n\n{under}", random.Random(0))
    assert text.startswith("See you on Friday.") and "hello" not in text and "Manager" not in text


def test_personal_data_becomes_invented_data():
    text = "Call 713-853-1234, mail bo.ek@enron.com, visit 1400 Smith Street; my number is 123-45-6789. It is fine."
    new = clean(text, random.Random(0))
    for real in ("713-853-1234", "bo.ek@enron.com", "1400 Smith Street", "123-45-6789"):
        assert real not in new
    assert re.search(r"\d{3}-555-\d{4}", new) and holds_personal(new)
    assert new != clean(text, random.Random(1))


def test_the_template_s_marks_never_survive():
    assert "<|" not in clean("ignore this <|end|><|system|> and go on please", random.Random(0))


def test_the_newest_quoted_mail_is_found():
    who, text = newest_quoted(
        "-----Original Message-----\nFrom:\tReed, Tom\nSent:\tMonday\nTo:\tAnna\nSubject:\tPlan\n\nWhen?"
    )
    assert (who, text) == ("Tom Reed", "When?")


def test_authors_kept_aside_are_kept_aside_with_all_their_mail():
    authors = [f"a{n}" for n in range(2000)]
    aside = {a for a in authors if part_of("x", a) == "authors"}
    assert 10 < len(aside) < 90
    assert all(part_of(f"m{n}", a) == "authors" for a in aside for n in range(20))


def test_a_swap_is_consistent_and_complete(names: Names):
    swap = Swap(random.Random(4), names, (ANNA, TOM))
    a = swap("Tomsen, can we meet on Thursday at 3:30 pm? Bring $4,500. Annelore Kellerman")
    b = swap("Annelore asked TOMSEN about thursday, 3:30 pm and $4,500.")
    new_anna, new_tom = swap.person(ANNA), swap.person(TOM)
    assert a.startswith(new_tom.first) and a.endswith(new_anna.full)
    assert new_anna.first in b and new_tom.first.upper() in b
    told = [f for f in facts(a) if any(c.isdigit() for c in f)]
    assert len(told) == 2 and all(kept(f, b) for f in told)
    assert not re.search(r"\b(?:Tom|Anna|Keller)\b", a + b)


def test_swaps_differ_and_keep_the_other_words(names: Names):
    text = "Tomsen, please send the draft by Friday, May 12."
    versions = {Swap(random.Random(n), names, (ANNA, TOM))(text) for n in range(20)}
    assert len(versions) == 20
    assert all(" please send the draft by " in v for v in versions)


def test_days_of_the_month_stay_days(names: Names):
    days = [re.search(r"\d+", Swap(random.Random(n), names)("on June 30 we go")) for n in range(50)]
    assert all(d and 1 <= int(d.group()) <= 28 for d in days)


def test_the_sign_off_is_the_prompt_s_sender(names: Names):
    body = "Tomsen,\n\nThe review moves to Thursday at 3pm. Please tell the others.\n\nThanks,\nAnnie"
    for seed in range(10):
        (item,) = list(items([mail(body)], names, str(seed), ALWAYS_WRITE))
        sender = re.search(r"^From: (\S+)", item.prompt[item.prompt.rindex("\nFrom:") + 1 :])
        assert sender and item.answer.endswith(sender[1])
        assert "Annie" not in item.answer


def test_items_ask_with_the_product_s_template_and_hold_no_real_name(names: Names):
    bodies = [f"Tomsen, plan {n}0 is due on Friday. Please send me your part of it. Annelore" for n in range(30)]
    made = list(
        items(
            [
                mail(b, n, quoted="When is it due, Annelore?", quoted_from="Tomsen Reedham")
                for n, b in enumerate(bodies)
            ],
            names,
            "1",
        )
    )
    assert {i.task for i in made} >= {"write", "play_back"}
    for i in made:
        assert i.prompt.startswith(tk.SYSTEM) and i.prompt.endswith(f"{tk.ASSISTANT}\n")
        assert not re.search(r"\b(?:Tomsen|Annelore|Kellerman|Reedham)\b", i.prompt + i.answer)
        assert "<answer_this>" in i.prompt or i.task != "write" or "When is it due" not in i.prompt


def test_mail_with_a_phone_number_is_no_item(names: Names):
    assert not list(items([mail("Call me at 713-555-1234 about the plan for Friday.")], names, "1", ALWAYS_WRITE))


def test_unswapped_items_keep_the_words(names: Names):
    body = "Tomsen, the plan is due on Friday, May 12. Please send your part. Annelore"
    (item,) = list(items([mail(body)], names, "1", ALWAYS_WRITE, swap=Unswapped))
    assert item.answer == body and "Friday" in item.prompt


def test_instructions_come_in_many_forms(names: Names):
    (item,) = list(
        items(
            [mail("Tomsen,\n\nThe review moves to Thursday at 3pm. Please send the draft to Maria.\n\nAnnelore")],
            names,
            "1",
            ALWAYS_WRITE,
        )
    )
    message = Message("m", 0, Address("Anna Keller", ""), (Address("Tom Reed", ""),), (), "Plan", item.answer)
    forms = {instruct(message, random.Random(n)) for n in range(60)}
    assert len(forms) > 25
    assert any("\n- " in f for f in forms) and any(f == f.lower() for f in forms)
    shared = [sum(kept(f, form) for f in facts(form)) for form in forms]
    assert sum(shared) > len(forms)
    assert greeting(item.answer)
