"""How far long work is, on standard error. Knows clocks only."""

from __future__ import annotations

import sys
import time

from compress import ranks


class Clock:
    """Says after each of `count` steps how long the rest will take."""

    def __init__(self, count: int) -> None:
        self.count, self.done, self.worked, self.last, self.seconds = count, 0, 0, time.perf_counter(), 0.0

    def since(self) -> float:
        """Seconds since the last tick."""
        return time.perf_counter() - self.last

    def tick(self, known: bool, remark: str) -> None:
        """One more is done. known: it lay there from an earlier run."""
        passed, self.last = self.since(), time.perf_counter()
        self.done += 1
        if not known:
            self.worked, self.seconds = self.worked + 1, self.seconds + passed
        left = f"{duration((self.count - self.done) * self.seconds / self.worked)} left" if self.worked else "found"
        say(f"block {self.done}/{self.count}: {passed:.1f} s, {remark}, {left}")


def duration(seconds: float) -> str:
    """75 -> '1 min 15 s'."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def say(text: str) -> None:
    """A line on standard error, from the first process alone."""
    if ranks.first():
        print(text, file=sys.stderr, flush=True)


def peak_memory() -> int:
    """The most bytes that this process has held; 0 where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
