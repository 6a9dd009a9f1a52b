"""Late answers: what the user did since an event was sent stays, and no click is lost.

The server's answers are held back in the browser (`hold`) or at a gate of the fake assistant, so that they come after
the next act of the user whatever the speed of the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fake_assistant import Held, Writer
from person import REVIEW, asking, draft_of, listed, press, say, settle, wait_for_list, wait_until_written

from panza.types import DraftRequest

TOM = "Tom Okafor <tom@okafor.example>"
HOLD = """(() => {
    const held = new Promise((go) => { window.letGo = go; });
    window.late = (message) => (%s) ? held : undefined;
})()"""
# A stream's last value comes twice; between the two pass ten frames, in which a quick user acts.
SLOW_END = """(() => {
    const streams = new Set(), frame = () => new Promise(requestAnimationFrame);
    window.late = async (message) => {
        if (message.msg === "process_generating") streams.add(message.event_id);
        if (message.msg === "process_completed" && streams.has(message.event_id))
            for (let n = 0; n < 10; n++) await frame();
    };
})()"""
QUICK = """(() => {
    const look = () => {
        if (!document.querySelector("#text textarea")?.disabled && (%s)) return;
        requestAnimationFrame(look);
    };
    look();
})()"""


def hold(page: Any, which: str = "true") -> None:
    """Keep the server's messages back, from now on and after a reload."""
    page.add_init_script(HOLD % which)
    page.evaluate(HOLD % which)


def let_go(page: Any) -> None:
    page.evaluate("window.late = null; window.letGo()")


def field(page: Any, label: str) -> str:
    return page.get_by_label(label, exact=True).input_value()


@pytest.fixture
def requests(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> list[DraftRequest]:
    """What the page has asked `writer` to draft."""
    asked, draft = [], writer.draft
    monkeypatch.setattr(writer, "draft", lambda request, *rest: asked.append(request) or draft(request, *rest))
    return asked


def test_what_is_typed_while_the_page_loads_stays_and_the_rest_comes_back(page: Any, writer: Writer):
    say(page, REVIEW)
    page.get_by_label("To", exact=True).fill("Anna")
    page.get_by_label("Subject").fill("The review")
    text = press(page, writer, "Draft")
    hold(page)
    page.reload()
    say(page, "tell Tom that I drive")
    page.get_by_label("To", exact=True).fill("Tom")
    page.get_by_role("tab", name="Your mail").click()
    page.get_by_label("Your own addresses").fill("ruth@other.example")
    let_go(page)
    settle(page)
    assert page.get_by_label("Your own addresses").input_value() == "ruth@other.example"
    page.get_by_role("tab", name="Write").click()
    assert field(page, "What should it say?") == "tell Tom that I drive"
    assert (field(page, "To"), field(page, "Subject"), draft_of(page)) == ("Tom", "The review", text)


def test_words_written_into_the_draft_while_the_page_loads_stay(page: Any):
    hold(page)
    page.reload()
    page.get_by_label("Draft", exact=True).fill("My own words.")
    let_go(page)
    page.locator("#status dl").wait_for()
    settle(page)
    assert draft_of(page) == "My own words."


def test_a_draft_asked_for_while_the_page_loads_is_written(page: Any, writer: Writer, requests: list[DraftRequest]):
    with asking(page, "Anna"):
        page.get_by_label("To", exact=True).press_sequentially("Anna")
    settle(page)
    hold(page)
    page.reload()
    say(page, REVIEW)
    page.get_by_role("button", name="Draft").click()
    let_go(page)
    assert wait_until_written(page) == "".join(writer.words(DraftRequest(REVIEW, "Anna")))
    assert requests[-1].to == field(page, "To") == "Anna"


def test_a_mail_picked_as_soon_as_it_is_listed_stays_picked(page: Any):
    page.add_init_script(SLOW_END)
    pick = "document.querySelector('#picker input[value=\"3@test\"]')"
    page.add_init_script(QUICK % f"{pick} && ({pick}.click(), true)")
    page.reload()
    page.locator("#mail h2", has_text="Offsite: who drives?").wait_for()
    settle(page)
    assert page.locator("#mail h2").inner_text() == "Offsite: who drives?"
    assert page.locator("#picker input:checked").get_attribute("value") == "3@test"


def test_a_finished_draft_comes_once_and_then_is_the_users(page: Any):
    page.evaluate(SLOW_END)
    write = "(box.value += ' PS', box.dispatchEvent(new Event('input', { bubbles: true })), true)"
    page.evaluate(
        QUICK % f"document.querySelector('#again') && ((box) => {write})(document.querySelector('#text textarea'))"
    )
    say(page, REVIEW)
    page.get_by_role("button", name="Draft").click()
    assert wait_until_written(page).endswith(" PS")


def test_a_click_on_a_button_that_has_just_come_back_counts(page: Any, requests: list[DraftRequest]):
    page.evaluate(SLOW_END)
    page.evaluate(QUICK % "document.querySelector('#again') && (document.querySelector('#draft').click(), true)")
    say(page, REVIEW)
    with asking(page, REVIEW):
        page.get_by_role("button", name="Draft").click()
    page.locator("#again").wait_for()
    settle(page)
    page.locator("#again").wait_for()
    assert len(requests) == 2


def test_a_mail_opened_late_leaves_what_was_typed_since(serve: Callable, visit: Callable, held: Held):
    page = visit(serve(held))
    settle(page)
    held.opening.shut()
    with asking(page, "3@test"):
        listed(page, "Offsite: who drives?").click()
    with asking(page, "Bob"):
        page.get_by_label("To", exact=True).press_sequentially("Bob")
    held.opening.let()
    page.locator("article.mail").wait_for()
    settle(page)
    assert (field(page, "To"), field(page, "Subject")) == ("Bob", "Re: Offsite: who drives?")
    page.reload()
    page.locator("article.mail").wait_for()
    settle(page)
    assert (field(page, "To"), field(page, "Subject")) == ("Bob", "Re: Offsite: who drives?")


def test_a_draft_asked_for_before_the_mail_shows_answers_it(page: Any, requests: list[DraftRequest]):
    hold(page)
    listed(page, "Offsite: who drives?").click()
    say(page, "I drive")
    page.get_by_role("button", name="Draft").click()
    let_go(page)
    wait_until_written(page)
    assert (requests[-1].reply_to, requests[-1].to) == ("3@test", TOM)
    assert (field(page, "To"), field(page, "Subject")) == (TOM, "Re: Offsite: who drives?")


def test_a_subject_typed_while_panza_writes_stays(page: Any, writer: Writer):
    say(page, REVIEW)
    writer.gate.shut()
    writer.gate.let(2)
    page.get_by_role("button", name="Draft").click()
    page.locator("#stop").wait_for()
    with asking(page, "My subject"):
        page.get_by_label("Subject").press_sequentially("My subject")
    writer.gate.let()
    wait_until_written(page)
    assert field(page, "Subject") == "My subject"


def test_until_a_click_is_answered_the_text_and_the_buttons_wait(page: Any, writer: Writer):
    say(page, REVIEW)
    press(page, writer, "Draft")
    hold(page)
    page.get_by_role("button", name="Again").click()
    page.wait_for_function("document.querySelector('#text textarea').disabled")
    assert all(page.locator(f"#{name}").is_disabled() for name in ("draft", "again", "shorter", "longer"))
    let_go(page)
    wait_until_written(page)
    assert all(page.locator(f"#{name}").is_enabled() for name in ("draft", "again", "shorter", "longer"))


def test_a_refused_click_gives_text_and_buttons_back(page: Any):
    page.get_by_label("Draft", exact=True).fill("My own words.")
    page.get_by_role("button", name="Draft").click()
    page.get_by_role("alert").wait_for()
    settle(page)
    assert page.locator("#draft").is_enabled() and page.get_by_label("Draft", exact=True).is_enabled()
    assert draft_of(page) == "My own words."


def test_a_text_brought_back_late_leaves_what_was_typed_since(page: Any, writer: Writer):
    page.get_by_label("Draft", exact=True).fill("My own words.")
    say(page, REVIEW)
    press(page, writer, "Draft")
    hold(page)
    page.get_by_role("button", name="Bring back").click()
    page.get_by_label("Draft", exact=True).fill("Other words.")
    let_go(page)
    settle(page)
    assert draft_of(page) == "Other words."


def test_a_late_stop_leaves_the_report_alone(page: Any, writer: Writer):
    writer.gate.shut()
    page.get_by_role("tab", name="Your mail").click()
    page.get_by_role("button", name="Learn my voice").click()
    on_its_way: list[Any] = []
    page.route("**/gradio_api/run/**", lambda route: on_its_way.append(route))
    with page.expect_request("**/gradio_api/run/**"):
        page.locator("#learn-stop").click()
    writer.gate.let()
    page.get_by_text("Learnt from").wait_for()
    with page.expect_response("**/gradio_api/run/**"):
        on_its_way[0].fallback()
    settle(page)
    assert "Learnt from" in page.locator("#learn-progress").inner_text()


def test_the_end_of_learning_leaves_a_search_alone(page: Any, writer: Writer):
    writer.gate.shut()
    page.get_by_role("tab", name="Your mail").click()
    page.get_by_role("button", name="Learn my voice").click()
    page.locator("#learn-stop").wait_for()
    page.get_by_role("tab", name="Write").click()
    page.get_by_label("Answer a mail").fill("offsite")
    wait_for_list(page, 1)
    writer.gate.let()
    page.get_by_text("trained on").wait_for()
    settle(page)
    assert page.locator("#picker label").count() == 2


def test_an_event_sent_while_the_stream_of_answers_closes_is_answered(page: Any):
    hold(page, "message.msg === 'close_stream'")
    say(page, REVIEW)
    settle(page)  # all is answered: the server has closed the stream, which the page has yet to hear
    with page.expect_response(lambda r: "/queue/join" in r.url):
        page.get_by_role("button", name="Draft").click()
    let_go(page)
    assert "review moves" in wait_until_written(page)
