"""From playback pairs to training examples: split by thread and time, prompts with retrieved mails, tokens, loss mask.

The prompt of an example is built by the same function as the prompt of a draft (`compose`). Knows no optimiser.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from panza import prompt
from panza.mail.quoted import quoted_message
from panza.models import ChatTokenizer
from panza.prompt import Chat
from panza.types import Message, PlaybackPair

if TYPE_CHECKING:
    from panza.mail import Store
    from panza.retrieve import Retriever


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt with its answer. `source` is the Message-ID of the answer."""

    source: str
    chat: Chat
    answer: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of prompt, answer and end of turn; the loss counts where `mask` is True."""

    source: str
    ids: list[int]
    mask: list[bool]


@dataclass(frozen=True, slots=True)
class Split:
    """Pairs by thread and time: every training mail is older than every thread in `validation` and `heldout` ends."""

    train: list[PlaybackPair]
    validation: list[PlaybackPair]  # chooses when to stop
    heldout: list[PlaybackPair]  # is only reported on


def split(pairs: Sequence[PlaybackPair], heldout_share: float = 0.2, validation_share: float = 0.1) -> Split:
    """The latest threads are held out, the ones before them validate. A thread is never cut in two.

    Threads are ordered by their last pair; shares are of all pairs. A part is empty only if there are too few threads.
    """
    threads: dict[str, list[PlaybackPair]] = {}
    for pair in pairs:
        threads.setdefault(pair.message.thread or pair.message.id, []).append(pair)
    parts: tuple[list[PlaybackPair], ...] = ([], [], [])  # held out, validation, train
    limits = (heldout_share * len(pairs), validation_share * len(pairs), float("inf"))
    part = 0
    for thread in sorted(threads.values(), key=lambda t: max(p.message.date for p in t), reverse=True):
        while part < 2 and (parts[part] or not limits[part]) and len(parts[part]) + len(thread) / 2 > limits[part]:
            part += 1
        parts[part].extend(thread)
    while not parts[2] and (parts[1] or parts[0]):  # few or long threads: training comes first
        parts = ([], parts[0], parts[1])
    heldout, validation, train = (sorted(p, key=lambda pair: pair.message.date) for p in parts)
    return Split(train, validation, heldout)


def answered(message: Message, store: Store) -> list[Message]:
    """The mails that `message` came after, the one it answers last, at most three: from its thread, else its quote."""
    earlier = [m for m in store.thread(message.thread).messages if m.date < message.date and m.id != message.id]
    earlier.sort(key=lambda m: m.id == message.in_reply_to)  # stable: the others stay by date
    if earlier:
        return earlier[-3:]
    parent = quoted_message(message)
    return [parent] if parent and parent.body.strip() else []


def compose(
    instruction: str,
    *,
    sender: str,
    recipient: str,
    subject: str,
    length: str,
    thread: Sequence[Message],
    retrieved: Sequence[Message],
    fits: Callable[[Chat], bool],
) -> tuple[Chat, list[Message]]:
    """The prompt and the retrieved mails that it holds: as many as fit; the instruction is never cut.

    Dropped first: retrieved mails from the last, then older thread mails, then the mail answered.
    """
    thread, retrieved = list(thread), list(retrieved)
    while True:
        chat = prompt.write(
            instruction,
            sender=sender,
            recipient=recipient,
            subject=subject,
            length=length,
            thread=thread,
            retrieved=retrieved,
        )
        if fits(chat) or not (retrieved or thread):
            return chat, retrieved
        (retrieved if retrieved else thread).pop(-1 if retrieved else 0)


def build(
    pairs: Sequence[PlaybackPair],
    store: Store,
    retriever: Retriever | None,
    tokenizer: ChatTokenizer,
    *,
    sender: str,
    most_tokens: int,
    raft: float = 1.0,
    mails: int = 2,
    lengths: float = 0.0,
    seed: int = 0,
    kept_aside: frozenset[str] = frozenset(),
) -> list[Example]:
    """An example for each pair.

    raft: probability that the prompt holds retrieved mails (RAFT, arXiv 2403.10131); they are older than the mail and
        from other threads, so the answer never stands in its own prompt.
    lengths: probability that the prompt names the answer's length class.
    kept_aside: threads that no prompt may show.
    most_tokens: of prompt and answer; an answer is cut only if it does not fit alone.
    """
    examples = []
    for pair in pairs:
        m, chance = pair.message, random.Random(f"{seed} {pair.message.id}")
        thread = answered(m, store)
        retrieved: list[Message] = []
        if retriever is not None and chance.random() < raft:
            found = retriever.search(pair.instruction, 4 * mails, before=m.date, not_thread=m.thread)
            retrieved = [r for r in found if r.thread not in kept_aside][:mails]
        room = most_tokens - len(tokenizer.tokenizer(m.body)["input_ids"]) - 4
        chat, _ = compose(
            pair.instruction,
            sender=sender,
            recipient=m.to[0].label if m.to else "",
            subject=m.subject if thread else "",
            length=prompt.length_class(m.body) if chance.random() < lengths else "",
            thread=thread,
            retrieved=retrieved,
            fits=lambda chat, room=room: len(tokenizer.encode(chat)) <= room,
        )
        examples.append(Example(m.id, chat, m.body))
    return examples


def encode(examples: Sequence[Example], tokenizer: ChatTokenizer, most_tokens: int) -> list[Encoded]:
    """Tokens and loss mask of each example; cut at `most_tokens` from the end, where only an overlong answer reaches."""
    encoded = []
    for example in examples:
        ids, mask = tokenizer.encode_answered(example.chat, example.answer)
        if any(mask[:most_tokens]):
            encoded.append(Encoded(example.source, ids[:most_tokens], mask[:most_tokens]))
    return encoded
