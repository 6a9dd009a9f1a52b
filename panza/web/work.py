"""Run one piece of work in a thread of its own, so that a closed tab or a reload never loses it. Knows no mail."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from panza.types import UserError

log = logging.getLogger(__name__)

EVERY = 0.05  # seconds between two values that a follower is shown: twenty a second look fluid


class Stopped(KeyboardInterrupt):
    """Raised from a progress call after Stop: the work ends exactly as it would on Ctrl-C, and resumes as well."""


@dataclass(frozen=True, slots=True)
class Step:
    """How far work has come. rate: items a second, left: seconds; both 0 while unknown. total: 0 while unknown."""

    done: int = 0
    total: int = 0
    note: str = ""
    rate: float = 0.0
    left: float = 0.0


class Pace:
    """Turns progress calls into steps with a rate. A new total or a step back begins a new phase."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._last = Step(total=-1)
        self._first, self._begun = 0, 0.0

    def step(self, done: int, total: int, note: str = "") -> Step:
        """The step for one progress call."""
        if total != self._last.total or done < self._last.done:
            self._first, self._begun = done, self._clock()
        seconds, gained = self._clock() - self._begun, done - self._first
        rate = gained / seconds if seconds > 0 and gained > 0 else 0.0
        left = max(0, total - done) / rate if rate and total else 0.0
        self._last = Step(done, total, note, rate, left)
        return self._last


class Work:
    """One piece of work. `run(work)` calls `work.show(value)` as it goes and looks at `work.stopped`.

    name: completes the sentence "Panza is still …". After the end exactly one of `result` and `error` counts:
    `error` is one sentence for the user, empty if all went well.
    """

    def __init__(self, name: str, run: Callable[[Work], Any]):
        self.name = name
        self.stopped = threading.Event()
        self.latest: Any = None
        self.result: Any = None
        self.error = ""
        self.ended = False
        self._version = 0
        self._changed = threading.Condition()
        self._run = run

    def start(self) -> Work:
        """Begin; returns at once."""
        threading.Thread(target=self._work, name=self.name, daemon=True).start()
        return self

    def show(self, value: Any) -> None:
        """Make `value` the newest one that followers see."""
        with self._changed:
            self.latest = value
            self._version += 1
            self._changed.notify_all()

    def stop(self) -> None:
        """Ask for an early end; followers see at once that it was asked."""
        with self._changed:
            self.stopped.set()
            self._version += 1
            self._changed.notify_all()

    def progress(self) -> Callable[[int, int, str], None]:
        """A panza.types.Progress that shows Steps and raises Stopped once the user has asked for it."""
        pace = Pace()

        def tell(done: int, total: int, note: str = "") -> None:
            if self.stopped.is_set():
                raise Stopped
            self.show(pace.step(done, total, note))

        return tell

    def follow(self, every: float = EVERY) -> Iterator[Any]:
        """The newest value whenever there is a new one, the last one included; ends when the work has ended."""
        seen = 0
        while True:
            with self._changed:
                self._changed.wait_for(partial(self._moved, seen))
                new, seen, ended, value = self._version > seen, self._version, self.ended, self.latest
            if new:
                yield value
            if ended:
                return
            time.sleep(every)

    def _moved(self, seen: int) -> bool:
        return self._version > seen or self.ended

    def _work(self) -> None:
        try:
            self.result = self._run(self)
        except UserError as mistake:
            self.error = str(mistake)
        except Stopped:
            self.error = "Stopped. What was done is kept; start again to go on from here."
        except Exception as bug:  # the page must say so, whatever it was; a message may hold mail, its place does not
            log.error("%s while %s\n%s", type(bug).__name__, self.name, "".join(traceback.format_tb(bug.__traceback__)))
            self.error = f"Something went wrong in Panza ({type(bug).__name__}); the terminal says where."
        finally:
            with self._changed:
                self.ended = True
                self._changed.notify_all()
