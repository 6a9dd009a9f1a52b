"""What the page shows: dates and numbers as people write them, mail as plain text, colours that can be read."""

from __future__ import annotations

import re
import time
from importlib import resources

import pytest
from fake_assistant import EVIL, mails

from panza.mail import ImportReport
from panza.types import Draft, Thread
from panza.web import view
from panza.web.desk import IMPORT
from panza.web.work import Step, Work


def test_no_word_of_a_mail_is_markup_or_template():
    evil = mails()[3]
    shown = view.letter(evil, Thread("t", (evil,))) + view.sources([evil])
    assert "<img" not in shown and "<script" not in shown
    assert not re.search(r"[${}`]", shown)
    assert shown.count("&lt;script&gt;") >= 4


def test_plain_keeps_the_words():
    import html

    assert html.unescape(view.plain(EVIL)) == EVIL


def test_dates_as_a_mail_list_shows_them():
    now = time.mktime((2026, 11, 22, 18, 0, 0, 0, 0, -1))
    assert view.day(int(now) - 3600, now) == "17:00"
    assert view.day(int(now) - 40 * 86400, now) == "13 Oct"
    assert view.day(int(now) - 400 * 86400, now).endswith(" 2025")
    assert view.day(0, now) == "no date"


@pytest.mark.parametrize(("seconds", "words"), [(8, "8 s"), (89, "89 s"), (200, "3 min"), (4800, "1 h 20 min")])
def test_spans(seconds: float, words: str):
    assert view.span(seconds) == words


def test_earlier_mails_are_folded_and_later_ones_are_not_shown():
    sent, answer = mails()[:2]
    thread = Thread("t1", (sent, answer))
    assert "1 earlier mail in this conversation" in view.letter(answer, thread)
    assert "earlier mail" not in view.letter(sent, thread)


def test_the_line_under_the_draft():
    draft = Draft("x", "s", ("a", "b"), 64, 3.21, 0.4, done=True)
    assert "64 tokens · 3.2 s · 2 sources · on this computer" in view.facts(draft)
    assert ">stopped · 64" in view.facts(draft, stopped=True)
    assert ">writing … · 64" in view.facts(draft, running=True)


def test_progress_tells_phase_rate_and_time_left():
    work = Work("learning your voice", lambda work: None)
    work.show(Step(34, 160, "training", 2.1, 60.0))
    shown = view.progress(work)
    assert 'role="progressbar"' in shown and 'aria-valuenow="21"' in shown
    assert "Learning your voice: training" in shown and "34 of 160 · 2.1 a second · about 60 s left" in shown
    work.show(Step(12, 0, "reading"))
    assert "aria-valuenow" not in view.progress(work) and "12 so far" in view.progress(work)


def test_an_import_is_measured_in_megabytes():
    work = Work(IMPORT, lambda work: None)
    work.show(Step(52_000_000, 209_000_000, "1,204 mails", 8_000_000.0, 19.6))
    shown = view.progress(work)
    assert "Importing mail: 1,204 mails" in shown
    assert "52.0 MB of 209.0 MB · 8.0 MB a second · about 20 s left" in shown


def test_an_import_without_a_mail_of_mine_asks_who_i_am():
    assert "None is by" not in view.imported(ImportReport(5, 5, 2))
    shown = view.imported(ImportReport(5, 5, 0, candidates=("anna@example.org", "<b>@x.org")))
    assert "None is by your address" in shown and "anna@example.org, &lt;b&gt;@x.org" in shown


def test_training_that_did_not_help_is_not_praised():
    report = {"pairs": 12, "heldout": 3, "loss_before": 3.0, "loss_after": 2.0, "seconds": 60.0}
    assert "closer to how you write." in view.learnt(report)
    assert "no closer" in view.learnt({**report, "loss_after": 3.2})


def test_training_on_too_few_mails_claims_nothing():
    shown = view.learnt({"pairs": 2, "heldout": 0, "loss_before": None, "loss_after": None, "seconds": 60.0})
    assert "too few mails" in shown and "2 mails" in shown
    assert "never saw" not in shown and "closer" not in shown


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", [":root", ".dark"])
def test_every_pair_of_text_and_ground_has_aa_contrast(mode: str):
    css = (resources.files("panza.web") / "assets" / "panza.css").read_text()
    block = css.split(f"\n{mode} {{", 1)[1].split("}", 1)[0]
    tokens = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    texts = [(text, ground) for text in ("ink", "soft", "accent") for ground in ("paper", "sheet", "well", "tint")]
    texts += [("on-accent", "accent"), ("on-accent", "accent-deep"), ("wrong", "wrong-tint"), ("wrong", "sheet")]
    low = {pair: round(contrast(tokens[pair[0]], tokens[pair[1]]), 2) for pair in texts}
    assert not {pair: value for pair, value in low.items() if value < 4.5}
    assert contrast(tokens["edge"], tokens["sheet"]) >= 3 and contrast(tokens["edge"], tokens["paper"]) >= 3
