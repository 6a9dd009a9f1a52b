"""The nouns that every room shares. Knows the standard library alone; no file, no model, no network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


class UserError(Exception):
    """A user's mistake: one sentence that names the value and the choices. Never holds mail text."""


# progress(done, total, note): total 0 while it is unknown; note is a short phrase, never mail text.
Progress = Callable[[int, int, str], None]


def silent(done: int, total: int, note: str = "") -> None:
    """The progress of someone who does not look."""


@dataclass(frozen=True, slots=True)
class Address:
    """One person in a header. `email` is lower case; `name` may be empty."""

    name: str
    email: str

    @property
    def label(self) -> str:
        """The name to show and to prompt with: the display name, or the e-mail's local part as words."""
        return self.name or " ".join(w.capitalize() for w in self.email.split("@")[0].replace("_", ".").split(".") if w)


@dataclass(frozen=True, slots=True)
class Message:
    """One mail. `thread` and `mine` are empty until the store has filled them."""

    id: str  # Message-ID without angle brackets; made from the content where the mail has none
    date: int  # seconds since 1970, UTC; 0 if the mail names no readable date
    sender: Address
    to: tuple[Address, ...]
    cc: tuple[Address, ...]
    subject: str
    body: str  # the words the author wrote: no quotes, signature, footer; hard wraps undone
    quoted: str = ""  # what stood under them: the mail answered or forwarded, as plain text
    in_reply_to: str = ""
    references: tuple[str, ...] = ()
    source: str = ""  # where it was read: "path" or "path@byte offset"
    thread: str = ""  # id of its thread
    mine: bool = False  # its sender is one of the user's own addresses


@dataclass(frozen=True, slots=True)
class Thread:
    """Messages that answer each other, oldest first."""

    id: str
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class PlaybackPair:
    """An instruction and the sent mail that it would have led to."""

    message: Message
    instruction: str
    how: str  # "model", "extractive" (rules), or "written" for a line that the user added


@dataclass(frozen=True, slots=True)
class DraftRequest:
    """What the user asks for. `reply_to` is a Message-ID in the store; `length` one of prompt.LENGTHS or ""."""

    instruction: str
    to: str = ""  # "Anna Lee <anna@example.org>", an address, or a name
    reply_to: str = ""
    subject: str = ""
    length: str = ""
    seed: int | None = None  # None: greedy


@dataclass(frozen=True, slots=True)
class Draft:
    """A draft as far as it has been written."""

    text: str
    subject: str
    sources: tuple[str, ...]  # Message-IDs of the retrieved mails that stood in the prompt
    tokens: int
    seconds: float
    first_token_seconds: float
    done: bool = False
