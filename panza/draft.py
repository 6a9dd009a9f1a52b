"""Writer: an instruction, perhaps a mail to answer, and the user's own mail -> a draft. Never sends anything."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.utils import parseaddr

from panza import prompt
from panza.dataset import compose
from panza.mail import Store
from panza.mail.threads import reply_subject
from panza.models import Model, Sampling
from panza.retrieve import Retriever
from panza.types import Address, Draft, DraftRequest, Message, UserError

RETRIEVED = 2  # mails in the prompt, as in training
ANSWER_ROOM = 300  # tokens kept free for the answer
TEMPERATURE = 0.7  # with a seed; without one a draft is greedy
LOOP_TIMES = 4  # a draft that ends in a piece said so often in a row will not end by itself
LOOP_PIECE = 200  # the longest piece, in characters
LOOP_WORDS, LOOP_MARKS = 60, 200  # the least that is repeated, in characters: "ha ha" and a drawn line are no loops


class Writer:
    """Model + mail store + retriever: what a draft needs."""

    def __init__(self, model: Model, store: Store, retriever: Retriever | None, sender: str) -> None:
        self.model, self.store, self.retriever, self.sender = model, store, retriever, sender

    def draft(self, request: DraftRequest, stopped: Callable[[], bool] = lambda: False) -> Iterator[Draft]:
        """Snapshots of the draft, each longer than the last; the final one has `done`. Raises UserError on a bad request.

        A draft that loops is stopped, and the final snapshot says the repeated piece once.
        """
        started = time.monotonic()
        check(request, self.store)
        thread = self._thread(request.reply_to)
        recipient = self._recipient(request.to, thread)
        subject = reply_subject(thread[-1].subject) if thread and not request.subject else request.subject
        chat, sources = self.prompt(request, thread, recipient, subject)
        sampling = Sampling(ANSWER_ROOM, 0.0 if request.seed is None else TEMPERATURE, seed=request.seed or 0)
        draft = Draft("", subject, tuple(m.id for m in sources), 0, 0.0, 0.0)
        for piece in self.model.generate(chat, sampling, stopped):
            now = time.monotonic() - started
            draft = replace(
                draft,
                text=draft.text + piece,
                tokens=draft.tokens + 1,
                seconds=now,
                first_token_seconds=draft.first_token_seconds or now,
            )
            yield draft
            if (end := loop(draft.text)) is not None:
                draft = replace(draft, text=draft.text[:end])
                break
        draft = replace(draft, text=draft.text.strip())
        if not subject and draft.text and not stopped():
            draft = replace(draft, subject=self._title(draft.text, recipient, stopped))
        yield replace(draft, seconds=time.monotonic() - started, done=True)

    def prompt(
        self, request: DraftRequest, thread: list[Message], recipient: Address, subject: str
    ) -> tuple[prompt.Chat, list[Message]]:
        """The chat for a request and the retrieved mails that stand in it."""
        found: list[Message] = []
        if self.retriever is not None:
            not_thread = thread[-1].thread if thread else ""
            found = self.retriever.search(
                request.instruction, RETRIEVED, not_thread=not_thread, correspondent=recipient.email
            )
        room = self.model.context - ANSWER_ROOM
        return compose(
            request.instruction,
            sender=self.sender,
            recipient=recipient.label,
            subject=subject,
            length=request.length,
            thread=thread,
            retrieved=found,
            fits=lambda chat: len(self.model.encode(chat)) <= room,
        )

    def _thread(self, message_id: str) -> list[Message]:
        """The mail to answer and up to two before it, oldest first; [] for a new mail."""
        if not message_id:
            return []
        newest = self.store.get(bare_id(message_id))
        earlier = [m for m in self.store.thread(newest.thread).messages if m.date < newest.date]
        return [*earlier[-2:], newest]

    def _recipient(self, to: str, thread: list[Message]) -> Address:
        """From `--to`, else the sender of the mail answered (or, of a mail of one's own, its reader)."""
        if not to.strip() and thread:
            newest = thread[-1]
            return (newest.to[0] if newest.to else newest.sender) if newest.mine else newest.sender
        if "@" not in to:
            return Address(to.strip(), "")
        name, email = parseaddr(to)
        return Address(name or self.store.name_of(email), email.lower())

    def _title(self, text: str, recipient: Address, stopped: Callable[[], bool]) -> str:
        """A subject line for a new mail, written by the model; its first words if the model writes none."""
        mail = Message("", 0, Address(self.sender, ""), (recipient,), (), "", text)
        line = "".join(self.model.generate(prompt.title(mail), Sampling(16), stopped)).strip().split("\n")[0]
        line = re.sub(r"^(?:subject|re)\s*:\s*", "", line, flags=re.IGNORECASE).strip(" \"'")
        return line or " ".join(text.split()[:6])


def loop(text: str) -> int | None:
    """Where to cut a text that ends in one piece said LOOP_TIMES or more in a row: behind the first. None if it does not."""
    for period in range(1, min(LOOP_PIECE, len(text) // LOOP_TIMES) + 1):
        least = LOOP_WORDS if any(map(str.isalnum, text[-period:])) else LOOP_MARKS
        said = max(LOOP_TIMES * period, least)
        if said <= len(text) and text[-said:-period] == text[period - said :]:
            start = len(text) - said
            while start and text[start - 1] == text[start - 1 + period]:
                start -= 1
            return start + period
    return None


def check(request: DraftRequest, store: Store) -> None:
    """UserError if the request cannot be drafted. Needs no model, so that a mistake is answered at once."""
    if not request.instruction.strip():
        raise UserError("The instruction is empty: say in a few words what the mail should say.")
    if request.length and request.length not in prompt.LENGTHS:
        raise UserError(f"'{request.length}' is no length: choose one of {', '.join(prompt.LENGTHS)}.")
    if request.reply_to:
        try:
            store.get(bare_id(request.reply_to))
        except KeyError:
            raise UserError(
                f"There is no mail with the Message-ID '{request.reply_to}': `panza inbox` lists those that can be answered."
            ) from None


def bare_id(message_id: str) -> str:
    """A Message-ID as the store keeps it: without angle brackets."""
    return message_id.strip().strip("<>")
