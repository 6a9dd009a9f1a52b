"""Threads: by reference, by Gmail's id, by subject and people; never by an empty subject."""

from __future__ import annotations

import random

import pytest

from panza.mail.threads import WINDOW, Node, group, normal_subject, reply_subject

DAY = 24 * 3600


def node(id: str, date: int = 0, links: str = "", subject: str = "", people: str = "", gmail: str = "") -> Node:
    return Node(id, date, tuple(links.split()), gmail, subject, frozenset(people.split()))


def threads(*nodes: Node) -> set[frozenset[str]]:
    """The threads as sets of ids; checks on the way that each is named after its oldest mail."""
    found: dict[str, set[str]] = {}
    for id, thread in group(nodes).items():
        found.setdefault(thread, set()).add(id)
    dates = {n.id: (n.date, n.id) for n in nodes}
    assert all(thread == min(ids, key=dates.__getitem__) for thread, ids in found.items())
    return {frozenset(ids) for ids in found.values()}


@pytest.mark.parametrize(
    ("subject", "normal", "replied"),
    [
        ("Budget", "budget", False),
        ("Re: Budget", "budget", True),
        ("RE: re: Fwd: FW:  Budget  2001 ", "budget 2001", True),
        ("AW: WG: Budget", "budget", True),
        ("TR : RV: Budget", "budget", True),
        ("RIF: R: Budget", "budget", True),
        ("Re[2]: Budget", "budget", True),
        ("Re(3): Budget", "budget", True),
        ("SV: VS: Budget", "budget", True),
        ("[team] Re: [team] Budget", "budget", True),
        ("Re: [team] Budget", "budget", True),
        ("[team] Budget", "[team] budget", False),
        ("Regarding: Budget", "regarding: budget", False),
        ("Re:", "", True),
        ("", "", False),
    ],
)
def test_normal_subject(subject: str, normal: str, replied: bool) -> None:
    assert normal_subject(subject) == (normal, replied)


@pytest.mark.parametrize(
    ("subject", "reply"),
    [
        ("Lunch", "Re: Lunch"),
        ("Re: Lunch", "Re: Lunch"),
        ("AW: RE: Lunch", "Re: Lunch"),
        ("TR: Lunch", "Re: Lunch"),
        ("RE : Lunch", "Re: Lunch"),
        ("Re[2]: Fwd: the  Lunch ", "Re: the Lunch"),
        ("[team] Re: [team] Lunch", "Re: [team] Lunch"),
        ("[team] Lunch", "Re: [team] Lunch"),
        ("Report: Lunch", "Re: Report: Lunch"),
        ("Re:", "Re:"),
        ("", ""),
        ("  ", ""),
    ],
)
def test_one_re_stands_before_an_answer(subject: str, reply: str) -> None:
    assert reply_subject(subject) == reply
    assert reply_subject(reply) == reply
    assert normal_subject(reply)[0] == normal_subject(subject)[0].removeprefix("[team] ")


def test_references_join_even_through_a_mail_that_is_missing() -> None:
    a, b, c = node("a", 1), node("b", 2, "a"), node("c", 3, "gone")
    d, alone = node("d", 4, "a gone"), node("z", 5)
    assert threads(d, c, b, a, alone) == {frozenset("abcd"), frozenset("z")}


def test_gmail_threads_join() -> None:
    assert threads(node("a", 1, gmail="17"), node("b", 2, gmail="17"), node("c", 3, gmail="18")) == {
        frozenset("ab"),
        frozenset("c"),
    }


def test_a_reply_without_references_joins_its_subject_if_it_shares_a_person() -> None:
    first = node("a", 0, subject="Budget", people="anna ben")
    assert threads(first, node("b", DAY, subject="AW: Budget", people="ben")) == {frozenset("ab")}
    assert threads(first, node("b", DAY, subject="Re: Budget", people="carl")) == {frozenset("a"), frozenset("b")}
    assert threads(first, node("b", DAY, subject="Re: Budget")) == {frozenset("a"), frozenset("b")}


def test_a_mail_that_is_no_reply_begins_a_thread() -> None:
    a, b = node("a", 0, subject="Weekly report", people="anna"), node("b", DAY, subject="Weekly report", people="anna")
    answer = node("c", 2 * DAY, subject="Re: Weekly report", people="anna")
    assert threads(a, b, answer) == {frozenset("a"), frozenset("bc")}


def test_a_month_ends_a_subject() -> None:
    first = node("a", 0, subject="Budget", people="anna")
    assert threads(first, node("b", WINDOW, subject="Re: Budget", people="anna")) == {frozenset("ab")}
    assert threads(first, node("b", WINDOW + 1, subject="Re: Budget", people="anna")) == {
        frozenset("a"),
        frozenset("b"),
    }


@pytest.mark.parametrize("subject", ["", "Re:", "Re: Fwd: "])
def test_an_empty_subject_never_groups(subject: str) -> None:
    assert threads(node("a", 0, subject=subject, people="anna"), node("b", 1, subject=subject, people="anna")) == {
        frozenset("a"),
        frozenset("b"),
    }


def test_a_mail_with_references_is_not_joined_by_subject() -> None:
    a = node("a", 0, subject="Hello", people="anna")
    assert threads(a, node("b", DAY, "other", "Re: Hello", "anna")) == {frozenset("a"), frozenset("b")}


def test_the_order_of_the_mails_does_not_matter() -> None:
    chance = random.Random(7)
    nodes = [
        node(f"m{i}", i * DAY // 3, f"m{i - 5}" if i % 4 == 0 else "", f"{'Re: ' * (i % 2)}s{i % 7}", f"p{i % 5}", "")
        for i in range(60)
    ]
    want = group(nodes)
    for _ in range(5):
        chance.shuffle(nodes)
        assert group(nodes) == want


def test_a_long_chain_is_one_thread() -> None:
    assert threads(*(node(f"{i:05}", i, f"{i - 1:05}") for i in range(20_000))) == {
        frozenset(f"{i:05}" for i in range(20_000))
    }
