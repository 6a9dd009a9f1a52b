"""Work in a thread: progress with a rate, stop, errors that say no mail."""

from __future__ import annotations

import logging
import threading

import pytest

from panza.types import UserError
from panza.web.work import Pace, Step, Stopped, Work


def test_pace_gives_rate_and_time_left_and_starts_anew_with_each_phase():
    now = [0.0]
    pace = Pace(lambda: now[0])
    assert pace.step(0, 100, "reading") == Step(0, 100, "reading")
    now[0] = 5.0
    assert pace.step(20, 100, "reading") == Step(20, 100, "reading", rate=4.0, left=20.0)
    now[0] = 50.0
    assert pace.step(1, 10, "training") == Step(1, 10, "training")
    now[0] = 52.0
    assert pace.step(2, 10, "training").rate == 0.5
    assert pace.step(0, 10, "training") == Step(0, 10, "training")


def test_unknown_total_has_no_time_left():
    now = [0.0]
    pace = Pace(lambda: now[0])
    pace.step(0, 0)
    now[0] = 2.0
    assert pace.step(8, 0) == Step(8, 0, "", rate=4.0, left=0.0)


def test_every_follower_sees_the_last_value():
    def run(work: Work) -> str:
        for n in range(200):
            work.show(n)
        return "done"

    work = Work("counting", run).start()
    seen = [list(work.follow(every=0.001)) for _ in range(2)]
    assert work.result == "done" and work.ended and not work.error
    for values in seen:
        assert values[-1] == 199 and values == sorted(values)


def test_following_work_that_ended_shows_where_it_came_to():
    work = Work("counting", lambda work: work.show(7)).start()
    list(work.follow())
    assert list(work.follow()) == [7]


def test_stop_ends_the_work_at_its_next_step():
    begun, go = threading.Event(), threading.Event()
    steps = []

    def run(work: Work) -> None:
        tell = work.progress()
        for n in range(10):
            tell(n, 10, "")
            steps.append(n)
            begun.set()
            go.wait(180)

    work = Work("counting", run).start()
    assert begun.wait(180)
    work.stopped.set()
    go.set()
    list(work.follow())
    assert steps == [0] and "Stopped" in work.error


def test_stop_is_a_keyboard_interrupt_so_that_work_saves_what_it_has():
    assert issubclass(Stopped, KeyboardInterrupt) and not issubclass(Stopped, Exception)


def test_a_mistake_is_shown_as_it_is():
    def run(work: Work) -> None:
        raise UserError("There is no sent mail.")

    work = Work("learning", run).start()
    list(work.follow())
    assert work.error == "There is no sent mail."


def test_a_bug_is_named_but_its_message_is_neither_shown_nor_logged(caplog: pytest.LogCaptureFixture):
    words = " ".join(["words", "of", "a", "mail"])

    def run(work: Work) -> None:
        raise ValueError(words)

    with caplog.at_level(logging.ERROR):
        work = Work("learning", run).start()
        list(work.follow())
    assert "ValueError" in work.error and "ValueError" in caplog.text and "test_work.py" in caplog.text
    assert words not in work.error + caplog.text
