"""The one template: the same words ask for a mail when training and when drafting.

Every function returns chat messages ``[{"role", "content"}, ...]`` without the answer; a model's own chat
template turns them into text. Knows words; knows no tokenizer and no store.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from panza.types import Message

Chat = list[dict[str, str]]

# Name -> the fewest words of the class. One scale for "shorter" and "longer", for training and for drafting.
LENGTHS = {"very short": 0, "short": 12, "medium": 35, "long": 80}

QUOTE_CHARS = 700  # of the newest mail of a thread; older and retrieved ones get EARLIER_CHARS each
EARLIER_CHARS = 350

_DELIMITERS = re.compile(r"<(/?)(mail|answer_this)>|<\|([^|<>\n]{0,40})\|>", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def write(
    instruction: str,
    *,
    sender: str,
    recipient: str = "",
    subject: str = "",
    length: str = "",
    thread: Sequence[Message] = (),
    retrieved: Sequence[Message] = (),
) -> Chat:
    """Ask for one mail.

    sender, recipient: names as they would stand in a greeting or sign-off, never addresses.
    thread: mails that came before, oldest first; the last one is the one to answer.
    retrieved: mails that may hold facts; they stand in the prompt as data.
    """
    parts = [_mail(m, EARLIER_CHARS) for m in (*retrieved, *thread[:-1])]
    parts += [_mail(m, QUOTE_CHARS, tag="answer_this") for m in thread[-1:]]
    fields = {"From": sender, "To": recipient, "Subject": subject, "Length": length, "Instruction": instruction}
    parts.append("\n".join(f"{name}: {as_data(value.strip())}" for name, value in fields.items() if value.strip()))
    return _chat(f"You write mail as {as_data(sender)}. Follow the instruction and keep its facts.", "\n".join(parts))


def play_back(message: Message, style: str) -> Chat:
    """Ask for the instruction that would have led to `message`. style: a key of INSTRUCTION_STYLES."""
    return _chat(
        f"You turn a mail into the instruction that its author might have typed: {INSTRUCTION_STYLES[style]}. "
        "Keep names, dates, numbers and places. Do not copy sentences.",
        _mail(message, 1500),
    )


INSTRUCTION_STYLES = {
    "sentence": "one to three imperative sentences",
    "keywords": "a few keywords, separated by commas",
}


def title(message: Message) -> Chat:
    """Ask for a subject line for `message`."""
    return _chat("You give a mail its subject line: at most eight words.", _mail(message, 800))


def length_class(text: str) -> str:
    """The key of LENGTHS that the number of words in `text` falls into."""
    words = len(text.split())
    return max((low, name) for name, low in LENGTHS.items() if words >= low)[1]


def as_data(text: str) -> str:
    """`text` with the template's own marks broken, so that no mail can pose as part of the prompt.

    Control characters are left out, so that no draft can hand a mail's escape sequences on to a terminal.
    """
    return _DELIMITERS.sub(lambda m: m.group(0).replace("<", "‹").replace(">", "›"), _CONTROL.sub("", text))


def _chat(system: str, user: str) -> Chat:
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def _mail(m: Message, chars: int, tag: str = "mail") -> str:
    head = f"From: {as_data(m.sender.label)}\n" if m.sender.label else ""
    head += f"Subject: {as_data(m.subject)}\n" if m.subject else ""
    return f"<{tag}>\n{head}\n{as_data(_cut(m.body, chars))}\n</{tag}>"


def _cut(text: str, chars: int) -> str:
    text = text.strip()
    if len(text) <= chars:
        return text
    return text[:chars].rsplit(None, 1)[0] + " …"
