"""Guesses at what comes next: what followed the same two tokens, and as many as pay."""

from __future__ import annotations

import random

import pytest

from compress.guess import AGAIN, MOST, Lookup, Pace


def test_a_guess_is_what_followed_the_last_two_tokens_where_they_stood_last():
    text = Lookup([1, 2, 3, 1, 2, 4, 5, 6, 9, 1])
    assert text.guess(3) == []
    text.add(2)
    assert text.guess(3) == [4, 5, 6] and text.guess(1) == [4] and text.guess(0) == []
    text.add(4)
    assert text.guess(9) == [5, 6, 9, 1, 2, 4], "to the end of the text, no further"
    assert Lookup([]).guess(3) == Lookup([7]).guess(3) == Lookup([7, 7]).guess(3) == []
    assert Lookup([7, 7, 7]).guess(3) == [7]


def paced(more: float, right: float, passes: int = 400) -> list[int]:
    """The numbers of guesses that are chosen where each costs `more` of a pass and is right with this probability."""
    pace, chance, chosen = Pace(), random.Random(0), []
    for _ in range(passes):
        chosen.append(n := pace.guesses())
        hits = next((i for i in range(n) if chance.random() >= right), n)
        pace.add(n, hits, 1 + more * n)
    return chosen


@pytest.mark.parametrize(
    ("more", "right", "most_often"), [(0.05, 0.8, MOST), (0.5, 0.65, 1), (1.0, 0.7, 0), (0.2, 0.02, 0)]
)
def test_as_many_guesses_as_pay(more: float, right: float, most_often: int):
    chosen = paced(more, right)
    assert max(set(chosen), key=chosen.count) == most_often
    assert sum(n != most_often for n in chosen[100:]) < 60


def test_what_did_not_pay_is_tried_again():
    pace = Pace()
    for _ in range(10):
        for n in range(MOST + 1):
            pace.add(n, 0, 1.0 + 2 * n)
    chosen = set()
    for _ in range(AGAIN):
        chosen.add(n := pace.guesses())
        pace.add(n, 0, 1.0 + 2 * n)
    assert chosen == {0, 1}


def test_a_busy_start_is_forgotten_within_a_few_texts():
    """Passes with guesses took long while something else ran; they pay since."""
    pace = Pace()
    for n in (0, 0, 1, 1, 2, 2, 3, 3):
        pace.add(n, 0, 1.0 if n == 0 else 50.0)
    chosen = []
    for _ in range(4):
        pace.begin()
        for _ in range(30):
            chosen.append(n := pace.guesses())
            pace.add(n, n, 1.0 + 0.05 * n)
    assert chosen[-30:].count(MOST) > 20
