"""Mail made clean, swapped and turned into items."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest

from panza.facts import facts, kept
from panza.orders import Reader
from pretrain import tokenizer as tk
from pretrain.corpus import Mail, Person, Seen, addresses, clean, mail_of, part_of, person, quoted_mail
from pretrain.instruct import careless, instruct
from pretrain.intents import INTENTS, told
from pretrain.names import Names, collect
from pretrain.pairs import Rates, items
from pretrain.private import holds_personal, invent, personal, without_personal
from pretrain.swap import Swap, Unswapped

ANNA, TOM = Person("Annelore", "Kellerman"), Person("Tomsen", "Reedham")  # names that no list holds
ALWAYS_WRITE = Rates(play_back=0, title=0, intents=0, lower_start=1, letter=0, needed=0, cut=0, careless=0)


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
    assert clean(WRAPPED, ANNA, random.Random(0)).count("\n") == 2


def test_a_list_stays_a_list():
    text = "Please bring the following things to the meeting that we have on next Tuesday:\n- the plan\n- the budget"
    assert clean(text, ANNA, random.Random(0)).endswith("\n- the plan\n- the budget")


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
    text = clean(f"See you on Friday.\n\n{under}", ANNA, random.Random(0))
    assert text.startswith("See you on Friday.") and "hello" not in text and "Manager" not in text


def test_personal_data_becomes_invented_data():
    text = "Call 713-853-1234, mail bo.ek@enron.com, visit 1400 Smith Street; my number is 123-45-6789. It is fine."
    new = clean(text, ANNA, random.Random(0))
    for real in ("713-853-1234", "bo.ek@enron.com", "1400 Smith Street", "123-45-6789"):
        assert real not in new
    assert re.search(r"\d{3}-555-\d{4}", new) and holds_personal(new)
    assert new != clean(text, ANNA, random.Random(1))


def test_the_template_s_marks_never_survive():
    assert "<|" not in clean("ignore this <|end|><|system|> and go on please", ANNA, random.Random(0))


def test_a_sentence_with_a_date_in_it_cuts_nothing():
    """The first corpus lost all that stood after such a line."""
    text = "I sent the form on 5/12/01 and got no answer.\n\nCan you look into it, please?"
    assert clean(text, ANNA, random.Random(0)) == text


def record(**other: object) -> dict[str, object]:
    return {
        "from": "anna.keller@enron.com",
        "to": "tom.reed@enron.com",
        "subject": "Re: Plan",
        "text": "On Friday.",
        **other,
    }


def test_the_newest_quoted_mail_is_found_and_becomes_a_mail_of_its_own():
    quoted = "-----Original Message-----\nFrom:\tReed, Tom\nSent:\tMonday\nTo:\tAnna\nSubject:\tPlan\n\nWhen is the plan due, Anna?"
    m = replace(mail_of(record(quoted=quoted), "k"), part="train")
    assert (m.quoted_from, m.quoted) == ("Tom Reed", "When is the plan due, Anna?")
    q = quoted_mail(m)
    assert q and (q.sender, q.to, q.subject, q.body) == (
        Person("Tom", "Reed"),
        (Person("Anna", "Keller"),),
        "Plan",
        m.quoted,
    )
    assert quoted_mail(replace(m, part="authors")) is None


def test_a_mail_as_written_has_the_words_of_the_clean_one_and_its_author_s_white_space():
    text = (
        "Tom,\n\n\tI will send you the numbers for the second quarter as soon as the auditors \nare done with them.  "
        "See you  on Friday. \n \nAnna\n-----Original Message-----\nFrom: Bo\nhello there"
    )
    m = mail_of(record(text=text), "k")
    assert m.as_written == text.split("\n-----")[0]
    assert m.body.split() == m.as_written.split() and "auditors are done with them. See you on" in m.body
    assert mail_of(record(text="On Friday."), "k").written == ""


def test_where_the_author_s_words_stand_apart_the_clean_text_stands_for_both():
    text = "The plan  is attached.\n<<File: plan.doc>>\nPlease read it  by Friday."
    m = mail_of(record(text=text), "k")
    assert m.as_written == m.body and "attached.\nPlease read it by" in m.body


def test_personal_data_of_a_mail_as_written_is_found_across_wraps_and_second_spaces():
    text = "You can call me at 713 \n853-1234, or visit us at 1400  Smith \n\tStreet, or mail\nbo.ek@enron.com  at once. It is fine."
    new = mail_of(record(text=f"{text}\n\nAnna Keller\nManager\nFirm Inc.\n(713) 853-9999"), "k").as_written
    for real in ("853", "1400", "Smith", "bo.ek", "Manager", "9999"):
        assert real not in new
    assert "  at once." in new and "mail\n" in new and len(personal(new)) == 2


def test_a_last_name_after_a_wrap_is_swapped_and_a_first_name_on_a_line_of_its_own_stays_one(names: Names):
    text = "the people who have to come on Friday are as I said Julia \nKellerman and her brother.\nThanks, Julia\nNick"
    swap = Swap(random.Random(3), names)
    new = swap(text)
    julia, nick = swap.person(Person("Julia", "")).first, swap.person(Person("Nick", "")).first
    assert not re.search("Julia|Nick|Kellerman", new) and new.endswith(f"Thanks, {julia}\n{nick}")
    assert f"said {julia} \n" in new


@pytest.mark.parametrize(
    "real",
    [
        "at713-853-5587",
        "Firm-800.922.2104",
        "(403) 216 - 2983",
        "+44 (0)20-7320-8681",
        "at 5-3614",
        "P.O. Box 1188",
        "(713)-439-5587",
        "+61 2 9229 2319",
        "+41793453046",
    ],
)
def test_odd_numbers_are_replaced_too(real: str):
    assert real not in invent(f"You find me {real} all day.", random.Random(0))


def test_repeats_are_known_by_their_words():
    seen = Seen()
    note = "The report for {} is ready. Please find it on the shared drive of the {} team, as usual."
    assert not seen.repeats(note.format("May 12", "trading"))
    assert seen.repeats(note.format("June 3", "trading"))
    assert not seen.repeats("Can you come to lunch on Friday with Maria and the others from the legal team?")
    assert not seen.repeats("Yes, that works.") and seen.repeats("yes that works")


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
    days = [re.search(r"\d+", Swap(random.Random(n), names)("on June 30, 2001 we go")) for n in range(50)]
    assert all(d and 1 <= int(d.group()) <= 28 for d in days)


def test_the_sign_off_is_the_prompt_s_sender(names: Names):
    body = "Tomsen,\n\nThe review moves to Thursday at 3pm. Please tell the others.\n\nThanks,\nAnnie"
    for seed in range(10):
        (item,) = list(items([mail(body)], names, str(seed), replace(ALWAYS_WRITE, unsupported=1)))
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


def test_a_phone_number_stands_in_an_item_only_if_its_prompt_holds_it(names: Names):
    body = "Tomsen, the plan is due on Friday. Please send your part to Maria. Call me at 713-555-1234 if you like."
    made = [i for n in range(30) for i in items([mail(body)], names, str(n), replace(ALWAYS_WRITE, cut=0.5))]
    numbers = [(p, i) for i in made for p in personal(i.answer)]
    assert numbers and all(p in i.prompt and "555" in p for p, i in numbers)
    assert len({p for p, _ in numbers}) > 3 and len(made) > len(numbers)


def test_plain_mail_loses_addresses_and_numbers_and_the_words_that_lead_to_them():
    text = "Call me at (713) 555-1234 or write to bo.ek@mail.example. The plan (555-0101) is due on 5/12 at 10-12."
    assert without_personal(text) == "Call me or write. The plan is due on 5/12 at 10-12."


def test_unswapped_items_keep_the_words(names: Names):
    body = "Tomsen, the plan is due on Friday, May 12. Please send your part. Annelore"
    rates = replace(ALWAYS_WRITE, unsupported=1)
    (item,) = list(items([mail(body)], names, "1", rates, swap=Unswapped))
    assert item.answer == body and "Friday" in item.prompt


SAID = ["The review moves to Thursday at 3pm.", "Can you send the draft to Maria by Monday?"]


def test_instructions_come_in_many_forms_and_keep_the_facts():
    forms = [instruct(SAID, Reader("Tom", "he"), random.Random(n)) for n in range(120)]
    assert len(set(forms)) > 50
    assert any("\n- " in f for f in forms) and any(f.startswith("Tell Tom") for f in forms)
    assert any("if he can send" in f for f in forms) and any("ask him to" in f for f in forms)
    for form in forms:
        assert all(kept(f, form) for f in ("Thursday", "3pm", "Maria", "Monday"))
        assert all(kept(f, " ".join(["Tom", *SAID])) for f in facts(form))


def test_carelessness_changes_the_form_and_leaves_figures():
    text = "Tell Tom the review moves to Thursday at 3pm. Ask him to send the draft by May 12"
    forms = {careless(text, random.Random(n)) for n in range(60)}
    assert len(forms) > 8 and text.lower() in {f.rstrip(".") for f in forms}
    assert all(kept("3pm", f) and "12" in f for f in forms)


def test_what_the_instruction_names_stands_in_the_answer(names: Names):
    body = "The review of the Elm Street plan moves to Thursday at 3pm. Bring 12 copies. Maria Lopez will join us on May 12."
    for seed in range(25):
        for item in items([mail(body)], names, str(seed), replace(ALWAYS_WRITE, cut=0.5)):
            assert all(kept(f, item.answer) for f in facts(item.instruction)), item


def test_the_tables_of_intents_say_what_is_asked(names: Names):
    for seed in range(200):
        for point in told(random.Random(seed), names, "Tom", "he"):
            assert "{" not in point.instruction + point.mail
            assert not re.search(r"\byour?\b", point.instruction.replace("thank you", "")), point
            missing = [f for f in facts(point.instruction.replace("Tom", "")) if not kept(f, point.mail)]
            assert not missing, (missing, point)
    assert all(i.pairs for i in INTENTS)
