"""The page in a real browser: what a person does, and that nothing of it leaves the computer.

No test depends on how fast the machine is: the fake assistant waits at a gate until the test has seen what it wanted to
see, and `settle` waits until the page has its answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from fake_assistant import EVIL, Gate, Held, Writer
from person import (
    REVIEW,
    asking,
    draft_of,
    listed,
    press,
    say,
    settle,
    wait_for_draft,
    wait_for_list,
    wait_until_written,
)

from panza.home import open_home
from panza.types import DraftRequest


def test_a_draft_is_streamed_edited_and_kept(page: Any, writer: Writer):
    say(page, REVIEW)
    words = writer.words(DraftRequest(REVIEW))
    writer.gate.shut()
    page.get_by_role("button", name="Draft").click()
    for n in range(1, 7):  # the draft is seen growing: the word after the last one shown is not even written
        writer.gate.let(1)
        wait_for_draft(page, "".join(words[:n]))
    writer.gate.let()
    text = wait_until_written(page)
    assert text == "".join(words)
    assert page.get_by_label("Subject").input_value()
    assert "3 sources · on this computer" in page.locator("#facts").inner_text()

    with asking(page, "PS: bring the folder"):
        box = page.get_by_label("Draft", exact=True)
        box.press("Control+End")
        box.press_sequentially(" PS: bring the folder")
        page.get_by_label("Answer a mail").fill("offsite")
    wait_for_list(page, 1)
    settle(page)
    listed(page, "Offsite: who drives?").click()
    page.locator("article.mail").wait_for()
    settle(page)
    assert draft_of(page) == text + " PS: bring the folder"
    page.reload()
    page.locator("article.mail").wait_for()
    settle(page)
    assert draft_of(page) == text + " PS: bring the folder", "a reload loses nothing"

    assert "PS:" not in press(page, writer, "Again")
    page.get_by_role("button", name="Bring back").click()
    wait_for_draft(page, text + " PS: bring the folder")


def test_keys_draft_and_stop(page: Any, writer: Writer):
    say(page, REVIEW)
    words = writer.words(DraftRequest(REVIEW))
    writer.gate.shut()
    writer.gate.let(4)
    page.keyboard.press("Control+Enter")
    wait_for_draft(page, "".join(words[:4]))
    page.locator("#stop").wait_for()
    page.keyboard.press("Escape")
    page.locator("#again").wait_for()  # and not before: the gate lets nothing more through
    writer.gate.let()
    text = wait_until_written(page)
    assert text == "".join(words[:4]), "a stopped draft is not a whole one"
    assert "stopped" in page.locator("#facts").inner_text()


def test_shorter_and_longer_move_the_length_class(page: Any, writer: Writer):
    say(page, REVIEW)
    first = press(page, writer, "Draft")
    shorter = press(page, writer, "Shorter")
    assert len(shorter.split()) < len(first.split())
    assert len(press(page, writer, "Longer").split()) > len(shorter.split())


def test_the_picker_searches_opens_and_answers(page: Any):
    page.get_by_label("Answer a mail").fill("harbor")
    wait_for_list(page, 1)
    settle(page)
    listed(page, "Re: Review of the Harbor contract").click()
    page.locator("article.mail").wait_for()
    settle(page)
    assert "Can we still do the review" in page.locator("#mail").inner_text()
    assert page.get_by_label("To", exact=True).input_value() == "Anna Lindqvist <anna@northmill.example>"
    assert page.get_by_label("Subject").input_value() == "Re: Review of the Harbor contract"
    page.get_by_text("1 earlier mail in this conversation").click()
    page.locator("#mail").get_by_text("Tuesday at 10 for the review?").wait_for()


def test_the_picker_is_one_group_for_the_keyboard(page: Any):
    page.locator("#picker input").first.focus()
    page.keyboard.press("ArrowDown")
    page.locator("article.mail").wait_for()
    assert page.locator("#picker input").nth(1).is_checked()


def test_a_search_answered_after_a_click_leaves_the_choice_alone(serve: Callable, visit: Callable, held: Held):
    page = visit(serve(held))
    settle(page)
    held.searching.shut()
    held.opening.shut()
    with asking(page, "offsite"):
        page.get_by_label("Answer a mail").fill("offsite")
    with asking(page, "3@test"):
        listed(page, "Offsite: who drives?").click()
    held.searching.let()  # the search is answered before the server has heard of the click
    wait_for_list(page, 1)
    assert page.locator("#picker input:checked").get_attribute("value") == "3@test"
    held.opening.let()
    page.locator("article.mail").wait_for()
    settle(page)
    assert page.locator("#mail h2").inner_text() == "Offsite: who drives?"
    assert page.locator("#picker input:checked").get_attribute("value") == "3@test"


def test_a_mail_that_a_search_takes_away_under_the_click_opens_all_the_same(
    serve: Callable, visit: Callable, held: Held
):
    page = visit(serve(held))
    settle(page)
    held.searching.shut()
    with asking(page, "harbor"):
        page.get_by_label("Answer a mail").fill("harbor")
    on_its_way = []
    page.route("**/queue/join*", lambda r: on_its_way.append(r) if "3@test" in r.request.post_data else r.fallback())
    with asking(page, "3@test"):
        listed(page, "Offsite: who drives?").click()
    held.searching.let()
    wait_for_list(page, 1)
    on_its_way[0].fallback()
    page.locator("article.mail").wait_for()
    assert page.locator("#mail h2").inner_text() == "Offsite: who drives?"


def test_of_two_quick_choices_the_second_counts(serve: Callable, visit: Callable, held: Held):
    page = visit(serve(held))
    settle(page)
    held.opening.shut()
    page.locator("#picker input").first.focus()
    with asking(page, "4@test"):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.wait_for_function("document.querySelector('#picker input:checked').value === '3@test'")
    held.opening.let()
    page.locator("#mail h2", has_text="Offsite: who drives?").wait_for()
    settle(page)
    assert page.get_by_label("To", exact=True).input_value() == "Tom Okafor <tom@okafor.example>"


def test_sources_unfold_to_their_text(page: Any, writer: Writer):
    say(page, REVIEW)
    press(page, writer, "Draft")
    sources = page.locator("#sources details")
    assert sources.count() == 3
    assert "Review of the Harbor contract" in sources.first.inner_text()
    sources.first.locator("summary").click()
    sources.first.get_by_text("Tuesday at 10 for the review?").wait_for()


def test_mail_is_shown_as_text_and_runs_nothing(page: Any, writer: Writer):
    page.locator("#picker label").nth(1).click()
    page.locator("article.mail").wait_for()
    say(page, "answer it")
    press(page, writer, "Draft")
    assert EVIL.strip() in page.locator("#mail .words").first.inner_text()
    assert EVIL[:20] in page.locator("#picker").inner_text()
    assert page.locator("#mail img, #picker img, #sources img, #mail script").count() == 0
    assert page.evaluate("window.pwned") is None


def test_the_browser_remembers_no_mail(page: Any, writer: Writer):
    listed(page, "Re: Review of the Harbor contract").click()
    page.locator("article.mail").wait_for()
    say(page, REVIEW)
    press(page, writer, "Draft")
    kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
    assert not [word for word in ("Harbor", "Anna", "Thursday", "Ruth") if word in kept]
    assert page.evaluate("indexedDB.databases().then((all) => all.length)") == 0
    assert page.evaluate("document.cookie") == "", "scripts must not see the token"
    assert "token" not in page.url


def test_words_typed_while_the_page_still_loads_stay(serve: Callable, visit: Callable, tmp_path: Any):
    loading = Gate()

    class Slow(Writer):
        def status(self) -> Any:
            loading.step()
            return super().status()

    page = visit(serve(Slow(open_home(tmp_path / "home"))))
    settle(page)
    loading.shut()
    page.reload()
    say(page, REVIEW)
    page.get_by_role("tab", name="Your mail").click()
    page.get_by_label("Your own addresses").fill("ruth@calder.example")
    assert not page.locator("#status dl").count(), "the page has to be loading still"
    loading.let()
    page.locator("#status dl").wait_for(state="attached")
    settle(page)
    assert page.get_by_label("Your own addresses").input_value() == "ruth@calder.example"
    page.get_by_role("tab", name="Write").click()
    assert page.get_by_label("What should it say?").input_value() == REVIEW


def test_a_mistake_is_one_sentence_on_the_page(page: Any):
    page.get_by_role("button", name="Draft").click()
    page.get_by_role("alert").wait_for()
    assert "Say in a few words" in page.get_by_role("alert").inner_text()


def test_import_and_learn_from_the_page(serve: Callable, visit: Callable, tmp_path: Any):
    (tmp_path / "notes.mbox").write_text("\n\n".join(f"Subject {n}\nBody {n}" for n in range(40)))
    writer = Writer(open_home(tmp_path / "home"))
    page = visit(serve(writer))
    settle(page)
    assert "No mail yet" in page.locator("#status").inner_text()
    page.get_by_role("button", name="Bring in your mail").click()
    page.get_by_label("Files or folders").fill(f"{tmp_path}/nowhere")
    page.get_by_label("Your own addresses").fill("ruth@calder.example")
    page.get_by_role("button", name="Import").click()
    page.get_by_role("alert").wait_for()
    assert "nowhere" in page.get_by_role("alert").inner_text()
    page.get_by_label("Files or folders").fill(f"{tmp_path}/notes.mbox")
    writer.gate.shut()
    page.get_by_role("button", name="Import").click()
    for percent in (25, 50, 75):
        writer.gate.let(10)
        page.get_by_role("progressbar").and_(page.locator(f"[aria-valuenow='{percent}']")).wait_for()
    writer.gate.let()
    page.get_by_text("new mails of").wait_for()
    assert "40 new mails of 41 read; 20 written by you." in page.locator("#import-progress").inner_text()

    writer.gate.shut()
    page.get_by_role("button", name="Learn my voice").click()
    for phase, percent in (("writing instructions", 50), ("writing instructions", 100), ("training", 50)):
        writer.gate.let(20)
        page.get_by_role("progressbar").and_(page.locator(f"[aria-valuenow='{percent}']")).wait_for()
        page.get_by_text(f"Learning your voice: {phase}").wait_for()
    writer.gate.let()
    page.get_by_text("Learnt from").wait_for()
    report = page.locator("#learn-progress").inner_text()
    assert "loss 3.10 → 2.41, closer to how you write" in report
    page.get_by_role("tab", name="Write").click()
    page.get_by_text("trained on 20 mails").wait_for()
    wait_for_list(page, 20)


def test_learning_goes_on_over_a_reload_and_stops_when_asked(page: Any, writer: Writer):
    writer.gate.shut()
    writer.gate.let(10)
    page.get_by_role("tab", name="Your mail").click()
    page.get_by_role("button", name="Learn my voice").click()
    page.get_by_role("progressbar").wait_for()
    page.locator("#learn-stop").wait_for()
    page.get_by_role("button", name="Learn my voice").wait_for(state="hidden")
    page.reload()
    page.locator("#status dl").wait_for()
    page.get_by_role("tab", name="Your mail").click()
    page.get_by_role("progressbar").wait_for()
    page.get_by_role("tab", name="Write").click()
    say(page, REVIEW)
    page.get_by_role("button", name="Draft").click()
    page.get_by_role("alert").wait_for()
    assert "still learning your voice" in page.get_by_role("alert").inner_text()
    page.get_by_role("tab", name="Your mail").click()
    page.locator("#learn-stop").click()
    page.get_by_text("stopping …").wait_for()
    writer.gate.let()
    page.get_by_text("What was done is kept").wait_for()
    page.get_by_role("button", name="Learn my voice").wait_for()


def test_a_second_window_sees_the_same_draft_grow(serve: Callable, visit: Callable, writer: Writer):
    listening = serve(writer)
    page = visit(listening)
    say(page, REVIEW)
    words = writer.words(DraftRequest(REVIEW))
    writer.gate.shut()
    writer.gate.let(2)
    page.get_by_role("button", name="Draft").click()
    page.locator("#stop").wait_for()
    other = visit(listening)
    for n in (2, 6):
        for window in (page, other):
            wait_for_draft(window, "".join(words[:n]))
        writer.gate.let(4)
    writer.gate.let()
    assert wait_until_written(other) == wait_until_written(page) == "".join(words)


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1000, "light"), (1440, "dark")])
def test_no_screen_scrolls_sideways_and_dark_is_dark(
    serve: Callable, visit: Callable, writer: Writer, width: int, scheme: str
):
    page = visit(serve(writer), color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 844})
    for tab, content in (("Write", "#desk"), ("Your mail", "#mailbox")):
        page.get_by_role("tab", name=tab).click()
        page.locator(content).wait_for()
        settle(page)
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
    page = visit(serve(assistant.Assistant(open_home(tmp_path / "home"), str(tiny_base))))
    settle(page)
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


def test_the_cursor_goes_to_the_first_field_and_never_leaves_one_the_user_took(
    serve: Callable, visit: Callable, tmp_path: Any
):
    page = visit(serve(Writer(open_home(tmp_path / "empty"), [])))
    settle(page)
    page.get_by_role("button", name="Bring in your mail").click()
    page.locator("#paths textarea:focus").wait_for()
    page.get_by_role("tab", name="Write").click()
    settle(page)
    page.evaluate("""() => {  // a quick user: the other field is taken in the frame in which it shows
        const take = () => {
            const field = document.querySelector("#me input, #me textarea");
            if (field?.offsetParent) field.focus();
            else requestAnimationFrame(take);
        };
        take();  // asks for its frame before the page asks for its own
        document.querySelector(".go").click();
    }""")
    page.locator("#me :focus").wait_for()
    page.wait_for_timeout(300)
    assert page.evaluate("document.activeElement.closest('#me') !== null")


def test_the_fake_is_an_assistant(tmp_path: Any):
    """It has every public method of the real one that the page uses, with the same parameters."""
    import inspect

    real = pytest.importorskip("panza.assistant").Assistant
    for name in ("status", "import_mail", "learn", "inbox", "thread", "draft", "message"):
        ours, theirs = (list(inspect.signature(getattr(c, name)).parameters) for c in (Writer, real))
        assert ours == theirs[: len(ours)], name
    fields = json.dumps(sorted(Writer(open_home(tmp_path)).status().__dataclass_fields__))
    assert fields == json.dumps(sorted(pytest.importorskip("panza.assistant").Status.__dataclass_fields__))
