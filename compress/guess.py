"""Guesses at what a text goes on with, to be checked several in one pass. Knows token ids; knows no model.

A draft repeats its prompt: the instruction's facts, the names and phrases of the mail that it answers. So what followed the
last two tokens where they stood before is often what follows now (prompt lookup: github.com/apoorvumang/prompt-lookup-decoding).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import median

MOST = 3  # guesses of a pass: with the token before them as many as a product takes for little more than one
TRIALS = 2  # passes of a size before its time is believed
AGAIN = 32  # passes after which a larger size is tried again: what else the computer does has changed
REMEMBERED = 16  # passes of each size


class Lookup:
    """A text that grows, and for each two neighbours where what follows them stands."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self.tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        if len(self.tokens) > 1:
            self._after[tuple(self.tokens[-2:])] = len(self.tokens)
        self.tokens.append(token)

    def guess(self, most: int) -> list[int]:
        """At most `most` tokens that followed the last two before; none if they are new."""
        at = self._after.get(tuple(self.tokens[-2:]))
        return [] if at is None else self.tokens[at : at + most]


class Pace:
    """How many guesses pay: the number with the most tokens a second, by what passes took and how many guesses were right.

    A weight's kind, the threads and the computer's other work decide whether a pass over two tokens takes 1.1 or 2 times one
    over one; so it is measured. Which number is chosen changes no token, only when it comes.
    """

    def __init__(self) -> None:
        self._seconds: list[deque[float]] = [deque(maxlen=REMEMBERED) for _ in range(MOST + 1)]  # by guesses
        self._passes = 0
        self.begin()

    def begin(self) -> None:
        """A new text: how many guesses are right is its own, and times of a busier hour are forgotten in time."""
        self._right, self._judged = 3.0, 5.0
        for seconds in self._seconds[1:]:
            if seconds:
                seconds.popleft()

    def add(self, guesses: int, right: int, seconds: float) -> None:
        """A pass with so many guesses, the first `right` of them right."""
        self._seconds[guesses].append(seconds)
        self._right += right
        self._judged += min(right + 1, guesses)
        self._passes += 1

    def guesses(self) -> int:
        """How many to make now."""
        for n, seconds in enumerate(self._seconds):
            if len(seconds) < TRIALS:
                return n
        hope, tokens, rates = self._right / self._judged, 0.0, []
        for n, seconds in enumerate(self._seconds):
            tokens += hope**n
            rates.append(tokens / median(seconds))
        best = rates.index(max(rates))
        return min(best + 1, MOST) if self._passes % AGAIN == 0 else best
