"""The page in a real browser: what a person does, and that nothing of it leaves the computer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from fake_assistant import EVIL, Writer, mails

from panza.home import open_home

SAMPLE = """() => {
  window.seen = [];
  const box = document.querySelector("#text textarea");
  const look = () => {
    if (box.value !== window.seen.at(-1)) window.seen.push(box.value);
    requestAnimationFrame(look);
  };
  look();
}"""


def draft_of(page: Any) -> str:
    return page.get_by_label("Draft", exact=True).input_value()


def say(page: Any, words: str) -> None:
    page.get_by_label("What should it say?").fill(words)


def press(page: Any, button: str) -> str:
    """Press, wait until the draft stands; the draft."""
    page.get_by_role("button", name=button).click()
    page.locator("#stop").wait_for()
    return wait_until_written(page)


def wait_until_written(page: Any) -> str:
    page.locator("#again").wait_for()
    page.wait_for_function("!document.querySelector('#text textarea').disabled")
    return draft_of(page)


@pytest.fixture
def page(serve: Callable, visit: Callable) -> Any:
    return visit(serve(mails()))


def test_a_draft_is_streamed_edited_and_kept(page: Any):
    say(page, "tell Anna the review moves to Thursday")
    page.evaluate(SAMPLE)
    text = press(page, "Draft")
    growing = [value for value in page.evaluate("window.seen") if value]
    assert len(growing) >= 5, "the draft has to be seen growing"
    assert all(b.startswith(a) for a, b in zip(growing, growing[1:], strict=False)) and growing[-1] == text
    assert "review moves to thursday" in text.lower()
    assert page.get_by_label("Subject").input_value()
    assert "3 sources · on this computer" in page.locator("#facts").inner_text()

    box = page.get_by_label("Draft", exact=True)
    box.press("Control+End")
    box.press_sequentially(" PS: bring the folder")
    page.get_by_label("Answer a mail").fill("offsite")
    page.get_by_text("Offsite: who drives?").first.click()
    page.locator("article.mail").wait_for()
    page.wait_for_timeout(300)
    assert draft_of(page) == text + " PS: bring the folder"
    page.reload()
    page.locator("article.mail").wait_for()
    assert draft_of(page) == text + " PS: bring the folder", "a reload loses nothing"

    assert "PS:" not in press(page, "Again")
    page.get_by_role("button", name="Bring back").click()
    page.wait_for_function("document.querySelector('#text textarea').value.includes('PS:')")


def test_keys_draft_and_stop(serve: Callable, visit: Callable):
    page = visit(serve(mails(), pause=0.15))
    say(page, "tell Anna the review moves to Thursday")
    page.keyboard.press("Control+Enter")
    page.wait_for_function("document.querySelector('#text textarea').value.split(' ').length > 3")
    page.keyboard.press("Escape")
    text = wait_until_written(page)
    assert "stopped" in page.locator("#facts").inner_text()
    assert not text.rstrip().endswith("Ruth"), "a stopped draft is not a whole one"
    page.wait_for_timeout(600)
    assert draft_of(page) == text


def test_shorter_and_longer_move_the_length_class(page: Any):
    say(page, "tell Anna the review moves to Thursday")
    first = press(page, "Draft")
    shorter = press(page, "Shorter")
    assert len(shorter.split()) < len(first.split())
    assert len(press(page, "Longer").split()) > len(shorter.split())


def test_the_picker_searches_opens_and_answers(page: Any):
    page.get_by_label("Answer a mail").fill("harbor")
    page.wait_for_function("document.querySelectorAll('#picker label').length == 2")
    page.get_by_text("Re: Review of the Harbor contract").first.click()
    page.locator("article.mail").wait_for()
    assert "Can we still do the review" in page.locator("#mail").inner_text()
    assert page.get_by_label("To", exact=True).input_value() == "Anna Lindqvist <anna@northmill.example>"
    assert page.get_by_label("Subject").input_value() == "Re: Review of the Harbor contract"
    page.get_by_text("1 earlier mail in this conversation").click()
    assert page.get_by_text("Tuesday at 10 for the review?").is_visible()


def test_the_picker_is_one_group_for_the_keyboard(page: Any):
    page.locator("#picker input").first.focus()
    page.keyboard.press("ArrowDown")
    page.locator("article.mail").wait_for()
    assert page.locator("#picker input").nth(1).is_checked()


def test_sources_unfold_to_their_text(page: Any):
    say(page, "tell Anna the review moves to Thursday")
    press(page, "Draft")
    sources = page.locator("#sources details")
    assert sources.count() == 3
    assert "Review of the Harbor contract" in sources.first.inner_text()
    sources.first.locator("summary").click()
    assert page.get_by_text("Tuesday at 10 for the review?").is_visible()


def test_mail_is_shown_as_text_and_runs_nothing(page: Any):
    page.locator("#picker label").nth(1).click()
    page.locator("article.mail").wait_for()
    say(page, "answer it")
    press(page, "Draft")
    assert EVIL.strip() in page.locator("#mail .words").first.inner_text()
    assert EVIL[:20] in page.locator("#picker").inner_text()
    assert page.locator("#mail img, #picker img, #sources img, #mail script").count() == 0
    assert page.evaluate("window.pwned") is None


def test_the_browser_remembers_no_mail(page: Any):
    page.get_by_text("Re: Review of the Harbor contract").first.click()
    say(page, "tell Anna the review moves to Thursday")
    press(page, "Draft")
    kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
    assert not [word for word in ("Harbor", "Anna", "Thursday", "Ruth") if word in kept]
    assert page.evaluate("indexedDB.databases().then((all) => all.length)") == 0
    assert page.evaluate("document.cookie") == "", "scripts must not see the token"
    assert "token" not in page.url


def test_words_typed_while_the_page_still_loads_stay(serve: Callable, visit: Callable, tmp_path: Any):
    class Slow(Writer):
        def status(self) -> Any:
            time.sleep(1.5)
            return super().status()

    page = visit(serve(assistant=Slow(open_home(tmp_path / "home"))))
    page.reload()
    say(page, "tell Anna the review moves")
    page.get_by_role("tab", name="Your mail").click()
    page.get_by_label("Your own addresses").fill("ruth@calder.example")
    assert not page.locator("#status dl").count(), "the page has to be loading still"
    page.locator("#status dl").wait_for(state="attached")
    page.wait_for_timeout(500)
    assert page.get_by_label("Your own addresses").input_value() == "ruth@calder.example"
    page.get_by_role("tab", name="Write").click()
    assert page.get_by_label("What should it say?").input_value() == "tell Anna the review moves"


def test_a_mistake_is_one_sentence_on_the_page(page: Any):
    page.get_by_role("button", name="Draft").click()
    page.get_by_role("alert").wait_for()
    assert "Say in a few words" in page.get_by_role("alert").inner_text()


def test_import_and_learn_from_the_page(serve: Callable, visit: Callable, tmp_path: Any):
    (tmp_path / "notes.mbox").write_text("\n\n".join(f"Subject {n}\nBody {n}" for n in range(40)))
    page = visit(serve(pause=0.05))
    assert "No mail yet" in page.locator("#status").inner_text()
    page.get_by_role("button", name="Bring in your mail").click()
    page.get_by_label("Files or folders").fill(f"{tmp_path}/nowhere")
    page.get_by_label("Your own addresses").fill("ruth@calder.example")
    page.get_by_role("button", name="Import").click()
    page.get_by_role("alert").wait_for()
    assert "nowhere" in page.get_by_role("alert").inner_text()
    page.get_by_label("Files or folders").fill(f"{tmp_path}/notes.mbox")
    seen = watch(page, "Import", until="new mails of")
    assert len(seen) >= 3 and seen == sorted(seen)
    assert "40 new mails of 41 read; 20 written by you." in page.locator("#import-progress").inner_text()

    seen = watch(page, "Learn my voice", until="Learnt from")
    assert len(set(seen)) >= 4, "progress has to be seen moving"
    report = page.locator("#learn-progress").inner_text()
    assert "loss 3.10 → 2.41, closer to how you write" in report
    page.get_by_role("tab", name="Write").click()
    page.get_by_text("trained on 20 mails").wait_for()
    assert page.locator("#picker label").count() == 21


def watch(page: Any, button: str, until: str) -> list[int]:
    """Press the button; the values that the progress bar showed until the text came."""
    page.evaluate("""() => {
      window.bars = [];
      const look = () => {
        const value = document.querySelector("[role=progressbar][aria-valuenow]")?.ariaValueNow;
        if (value !== undefined && value !== window.bars.at(-1)) window.bars.push(value);
        requestAnimationFrame(look);
      };
      look();
    }""")
    page.get_by_role("button", name=button).click()
    page.get_by_text(until).wait_for()
    return list(map(int, page.evaluate("window.bars")))


def test_learning_goes_on_over_a_reload_and_stops_when_asked(serve: Callable, visit: Callable):
    page = visit(serve(mails(), pause=0.3))
    page.get_by_role("tab", name="Your mail").click()
    page.get_by_role("button", name="Learn my voice").click()
    page.get_by_role("progressbar").wait_for()
    page.locator("#learn-stop").wait_for()
    assert not page.get_by_role("button", name="Learn my voice").is_visible()
    page.reload()
    page.get_by_role("tab", name="Your mail").click()
    page.get_by_role("progressbar").wait_for()
    page.get_by_role("tab", name="Write").click()
    say(page, "tell Anna the review moves to Thursday")
    page.get_by_role("button", name="Draft").click()
    page.get_by_role("alert").wait_for()
    assert "still learning your voice" in page.get_by_role("alert").inner_text()
    page.get_by_role("tab", name="Your mail").click()
    page.locator("#learn-stop").click()
    page.get_by_text("What was done is kept").wait_for()
    assert page.get_by_role("button", name="Learn my voice").is_visible()


def test_a_second_window_sees_the_same_draft_grow(serve: Callable, visit: Callable):
    listening = serve(mails(), pause=0.1)
    page = visit(listening)
    say(page, "tell Anna the review moves to Thursday")
    page.get_by_role("button", name="Draft").click()
    page.locator("#stop").wait_for()
    other = visit(listening)
    other.wait_for_function("document.querySelector('#text textarea').value.length > 10")
    assert wait_until_written(other) == wait_until_written(page)


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1000, "light"), (1440, "dark")])
def test_no_screen_scrolls_sideways_and_dark_is_dark(serve: Callable, visit: Callable, width: int, scheme: str):
    page = visit(serve(mails()), color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 844})
    for tab in ("Write", "Your mail"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) < 200) == (scheme == "dark")


def test_every_control_and_pane_has_a_name(page: Any):
    nameless = page.evaluate("""() => [...document.querySelectorAll("input, textarea, button")].filter((e) =>
        e.offsetParent && !e.labels?.length && !e.getAttribute("aria-label") && !e.textContent.trim()).length""")
    assert nameless == 0
    for name in ("Mailbox and received mail", "The mail you answer", "Your draft"):
        assert page.get_by_role("region", name=name).count() == 1
    assert page.get_by_role("heading", level=1).inner_text() == "Panza"


def test_the_real_assistant_behind_the_page(
    serve: Callable, visit: Callable, tmp_path: Any, mailbox: Any, tiny_base: Any
):
    """Import from the page, then draft: real store, real retrieval, a language model of some thousand weights."""
    assistant = pytest.importorskip("panza.assistant")
    listening = serve(assistant=assistant.Assistant(open_home(tmp_path / "home"), str(tiny_base)))
    page = visit(listening)
    page.get_by_role("button", name="Bring in your mail").click()
    page.get_by_label("Files or folders").fill(str(mailbox))
    page.get_by_label("Your own addresses").fill("mara.lindt@example.org")
    page.get_by_role("button", name="Import").click()
    page.get_by_text("written by you.").wait_for()
    page.get_by_role("tab", name="Write").click()
    page.locator("#picker label").nth(1).click()
    page.locator("article.mail").wait_for()
    say(page, "yes, on Monday at 10")
    page.get_by_role("button", name="Draft").click()
    page.locator("#again").wait_for()
    assert "tokens" in page.locator("#facts").inner_text() and not page.get_by_role("alert").count()
    assert page.locator("#sources details").count() > 0


def test_the_fake_is_an_assistant(tmp_path: Any):
    """It has every public method of the real one that the page uses, with the same parameters."""
    import inspect

    real = pytest.importorskip("panza.assistant").Assistant
    for name in ("status", "import_mail", "learn", "inbox", "thread", "draft", "message"):
        ours, theirs = (list(inspect.signature(getattr(c, name)).parameters) for c in (Writer, real))
        assert ours == theirs[: len(ours)], name
    fields = json.dumps(sorted(Writer(open_home(tmp_path)).status().__dataclass_fields__))
    assert fields == json.dumps(sorted(pytest.importorskip("panza.assistant").Status.__dataclass_fields__))
