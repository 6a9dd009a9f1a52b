"""What a person does on the page, and what they wait for. Knows Playwright; knows no test."""

from __future__ import annotations

from typing import Any

from fake_assistant import Writer

REVIEW = "tell Anna the review moves to Thursday"


def settle(page: Any) -> None:
    """Wait until the page shows the answer to everything that it has asked for."""
    page.wait_for_function("window.settled()")


def draft_of(page: Any) -> str:
    return page.get_by_label("Draft", exact=True).input_value()


def wait_for_draft(page: Any, text: str) -> None:
    page.wait_for_function("text => document.querySelector('#text textarea').value === text", arg=text)


def say(page: Any, words: str) -> None:
    page.get_by_label("What should it say?").fill(words)


def press(page: Any, writer: Writer, button: str) -> str:
    """Press, see Panza write, wait until the draft stands; the draft."""
    writer.gate.shut()
    page.get_by_role("button", name=button).click()
    page.locator("#stop").wait_for()
    writer.gate.let()
    return wait_until_written(page)


def wait_until_written(page: Any) -> str:
    page.locator("#again").wait_for()
    page.wait_for_function("!document.querySelector('#text textarea').disabled")
    settle(page)
    return draft_of(page)


def listed(page: Any, words: str) -> Any:
    """The mail with these words in the picker."""
    return page.locator("#picker label").filter(has_text=words)


def wait_for_list(page: Any, mails: int) -> None:
    """Wait until the picker lists so many mails, below the line for a new one."""
    page.wait_for_function("n => document.querySelectorAll('#picker label').length === n", arg=mails + 1)


def asking(page: Any, words: str) -> Any:
    """A block that ends once the page has sent the server an event with these words."""
    return page.expect_request(lambda r: "/queue/join" in r.url and words in (r.post_data or ""))
