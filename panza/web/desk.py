"""What lies on the user's desk: the letter, the mail it answers, the work in hand. Knows no Gradio and no HTML.

It lives in the server, so a reload of the page finds everything where it was.
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from panza.mail.threads import reply_subject
from panza.prompt import LENGTHS, length_class
from panza.types import Draft, DraftRequest, Message, Thread, UserError
from panza.web.work import Work

INBOX = 50  # mails in the picker; the search finds the others

# The three kinds of work. Each completes the sentence "Panza is still …".
DRAFT, IMPORT, LEARN = "writing a draft", "importing mail", "learning your voice"


@dataclass(frozen=True, slots=True)
class Letter:
    """The fields of the page as the user left them."""

    instruction: str = ""
    to: str = ""
    subject: str = ""
    text: str = ""
    reply_to: str = ""


class Desk:
    """One user, one letter, one piece of work at a time."""

    def __init__(self, assistant: Any):
        self.assistant = assistant
        self.letter = Letter()
        self.before = ""  # the text that the newest draft replaced
        self.request: DraftRequest | None = None
        self.draft: Draft | None = None
        self.last: dict[str, Work] = {}  # the newest work of each kind
        self._starting, self._changing = threading.Lock(), threading.Lock()

    # ---- the letter

    def keep(self, **fields: str) -> None:
        """Change any fields of the letter; the others stay, though the user types while Panza writes."""
        with self._changing:
            self.letter = replace(self.letter, **fields)

    def pick(self, message_id: str) -> None:
        """Answer this mail, or none if empty. Recipient and subject follow; the words written so far stay."""
        to, subject = "", ""
        if message_id:
            message = self.assistant.message(message_id)
            to, subject = address(message), reply_subject(message.subject)
        self.keep(reply_to=message_id, to=to, subject=subject)

    def conversation(self) -> tuple[Message, Thread] | None:
        """The mail to answer and its thread."""
        if not self.letter.reply_to:
            return None
        return self.assistant.message(self.letter.reply_to), self.assistant.thread(self.letter.reply_to)

    def found(self, query: str) -> list[Message]:
        """Received mails for the picker, newest first; the chosen one is always among them."""
        found = self.assistant.inbox(query.strip(), INBOX)
        if self.letter.reply_to and all(m.id != self.letter.reply_to for m in found):
            found = [self.assistant.message(self.letter.reply_to), *found]
        return found

    def swap(self) -> None:
        """Bring back the text that the newest draft replaced; once more returns to the draft."""
        before, self.before = self.before, self.letter.text
        self.keep(text=before)

    # ---- work

    def write(self, change: Callable[[Desk], DraftRequest]) -> Work:
        """Start the draft that `change` asks for (a value of CHANGES)."""
        if not self.letter.instruction.strip():
            raise UserError(
                "Say in a few words what the mail should do, such as “tell Anna the review moves to Thursday”."
            )
        request, subject = change(self), self.letter.subject

        def run(work: Work) -> None:
            for draft in self.assistant.draft(request, work.stopped.is_set):
                self._take(draft, over=None if request.subject else subject)
                work.show(draft)

        def accept() -> None:
            self.request, self.draft, self.before = request, None, self.letter.text
            self.keep(text="")

        return self._start(Work(DRAFT, run), accept)

    def bring_in(self, paths: str, me: str) -> Work:
        """Start an import. paths: one a line. me: addresses parted by commas, blanks or lines."""
        files, addresses = read_paths(paths), read_addresses(me)
        return self._start(Work(IMPORT, lambda work: self.assistant.import_mail(files, addresses, work.progress())))

    def learn(self) -> Work:
        """Start playback, index and training."""
        return self._start(Work(LEARN, lambda work: self.assistant.learn(work.progress())))

    def running(self, name: str) -> bool:
        """Whether work of this kind is going on."""
        return name in self.last and not self.last[name].ended

    def stop(self) -> None:
        """Ask the work in hand to stop; it does within a token or a step."""
        for work in self.last.values():
            work.stop()

    def _start(self, work: Work, accept: Callable[[], None] = lambda: None) -> Work:
        with self._starting:
            for name in filter(self.running, self.last):
                raise UserError(f"Panza is still {name}: wait until it is done, or stop it first.")
            accept()
            self.last[work.name] = work
        return work.start()

    def _take(self, draft: Draft, over: str | None) -> None:
        """Lay a draft down. Its subject replaces `over` or its own last suggestion, never what the user wrote since."""
        with self._changing:
            last, now = self.draft.subject if self.draft else over, self.letter.subject
            subject = draft.subject if over is not None and now in (over, last) else now
            self.draft, self.letter = draft, replace(self.letter, text=draft.text, subject=subject)


def fresh(desk: Desk) -> DraftRequest:
    """A first draft. A subject that Panza itself suggested earlier is no wish of the user's."""
    letter, suggested = desk.letter, desk.draft.subject if desk.draft and not desk.request.subject else ""
    subject = "" if letter.subject == suggested else letter.subject
    return DraftRequest(letter.instruction.strip(), letter.to.strip(), letter.reply_to, subject.strip())


def again(desk: Desk) -> DraftRequest:
    """The same wish with another seed."""
    return replace(fresh(desk), length=desk.request.length if desk.request else "", seed=random.randrange(2**31))


def resized(by: int) -> Callable[[Desk], DraftRequest]:
    """The same wish, `by` classes longer than the text on the page is now."""

    def change(desk: Desk) -> DraftRequest:
        names, seed = list(LENGTHS), desk.request.seed if desk.request else None
        place = names.index(length_class(desk.letter.text)) + by
        if not 0 <= place < len(names):
            raise UserError(f"This draft is already {names[0] if by < 0 else names[-1]}, the last of the four lengths.")
        return replace(fresh(desk), length=names[place], seed=seed)

    return change


CHANGES = {"Draft": fresh, "Again": again, "Shorter": resized(-1), "Longer": resized(+1)}


def address(message: Message) -> str:
    """The sender as one would write it into a To field."""
    sender = message.sender
    return f"{sender.name} <{sender.email}>" if sender.name else sender.email


def read_paths(text: str) -> list[Path]:
    """The paths in `text`, one a line; each has to exist."""
    paths = [Path(line.strip().strip("\"'")).expanduser() for line in text.splitlines() if line.strip()]
    if not paths:
        raise UserError("Type the path of an mbox file, a Maildir or a folder of .eml files.")
    for path in paths:
        if not path.exists():
            raise UserError(
                f"There is no file or folder {path}: check the spelling, or copy the path from your file manager."
            )
    return paths


def read_addresses(text: str) -> list[str]:
    """The e-mail addresses in `text`."""
    addresses = [word for word in re.split(r"[\s,;]+", text) if word]
    if not addresses:
        raise UserError("Type your own e-mail address, so that Panza knows which mails you wrote.")
    for word in addresses:
        if not re.fullmatch(r"[^@<>]+@[^@<>]+", word):
            raise UserError(f"“{word}” is no e-mail address: it should look like you@example.org.")
    return addresses
