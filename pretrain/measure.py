"""Measure a checkpoint on mail that was kept aside, and draft what people type. Knows items; the measures are panza's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, LlamaForCausalLM

from panza import measure, prompt
from panza.measure import Asked, id_bits, some
from panza.models import ChatTokenizer, Sampling, TorchModel, complete_batch
from panza.types import Address, Message
from pretrain import tokenizer as tk
from pretrain.corpus import Mail, Person
from pretrain.pairs import Item

__all__ = ["by_hand", "drafts", "heldout", "heldout_items", "report", "score", "some"]

# Typed by hand: (sender, recipient, instruction).
BY_HAND = (
    ("David Brandt", "Anna Keller", "tell Anna the review moves to Thursday 3pm"),
    ("Maria Lopez", "Tom Reed", "thanks for the report, lunch friday at 12?"),
    ("Priya Nair", "James Okafor", "ask James to send the Q3 numbers by Tuesday"),
    ("Kenji Sato", "Laura Weiss", "can't make it tomorrow, sick, move to monday 10:30"),
    ("Elena Rossi", "Mark", "confirm dinner at 7:30 pm on May 12, table for 6 at Luigi's"),
    ("Sam Carter", "Fatima Hassan", "- invoice 4471 is paid\n- next one due June 3\n- thank her"),
    ("Nina Berg", "all", "office closed Friday, back Monday, call Peter if urgent"),
    ("Omar Farouk", "Greta Holm", "sorry for late reply, will look at the contract tonight and send comments tomorrow"),
    ("Lucy Chen", "Robert King", "pls ask robert if he can drive us to the airport on sunday at 6am"),
    ("Viktor Novak", "Sarah Bell", "congratulate Sarah on the new job in Denver"),
    ("Ines Costa", "Paul Martin", "decline the offer politely, budget is only $4,500"),
    ("Tim Walsh", "Mei Lin", "two tickets for the game Saturday, want one? $35 each"),
    ("Rachel Adler", "Ivan Petrov", "remind ivan that the draft is due wed, attach the template"),
    ("Jonas Krause", "Helen Ford", "introduce Helen to Carlos Mendes, he runs logistics in Lisbon"),
    ("Amy Tran", "Derek Shaw", "yes"),
)


def by_hand() -> list[Item]:
    """The instructions of BY_HAND as items without an answer."""
    return [
        Item("write", tk.chat_text(prompt.write(what, sender=who, recipient=to)), "", what) for who, to, what in BY_HAND
    ]


def as_model(net: LlamaForCausalLM, folder: Path) -> TorchModel:
    """A network with the tokenizer in `folder`, as the product loads them."""
    return TorchModel(net.eval(), ChatTokenizer(AutoTokenizer.from_pretrained(folder)), "checkpoint")


def drafts(net: LlamaForCausalLM, folder: Path, prompts: Sequence[str]) -> list[tuple[str, bool]]:
    """(text, ended by itself) of a greedy draft for each rendered prompt, in order."""
    model = as_model(net, folder)
    encode = model.chat_tokenizer.tokenizer.encode
    asked = [encode(p, add_special_tokens=False)[-(model.context - measure.MOST_TOKENS) :] for p in prompts]
    written = dict(complete_batch(model, asked, Sampling(measure.MOST_TOKENS)))
    return [(written[i].text, written[i].ended) for i in range(len(prompts))]


def score(asked: Sequence[Item], written: Sequence[tuple[str, bool]]) -> dict[str, Any]:
    """What `panza measure` says of drafts, with their length beside that of the mails."""
    told = [Asked(i.instruction, [{"role": "user", "content": i.prompt}]) for i in asked]
    lengths = {
        "words": sum(len(text.split()) for text, _ in written) / max(len(asked), 1),
        "words_reference": sum(len(i.answer.split()) for i in asked) / max(len(asked), 1),
    }
    return measure.score(told, [measure.Completion(*w) for w in written]) | lengths


def report(net: LlamaForCausalLM, folder: Path, mails: Sequence[Mail], asked: Sequence[Item]) -> dict[str, Any]:
    """All measures of a network on mails kept aside and on items."""
    model = as_model(net, folder)
    bits, scored = measure.bits_per_byte(model, [as_message(m, "as_written") for m in mails])
    written = drafts(net, folder, [i.prompt for i in asked])
    return {
        "bits_per_byte": bits,
        "mails": scored,
        "bits_per_byte_cleaned": measure.bits_per_byte(model, [as_message(m) for m in mails])[0],
        "bits_per_byte_instructed": instructed(model, asked),
        **score(asked, written),
    }


def instructed(model: TorchModel, asked: Sequence[Item]) -> float:
    """Bits for each byte of the items' answers and their end, given their prompts."""
    encode = model.chat_tokenizer.tokenizer.encode
    rows = [(encode(i.prompt, add_special_tokens=False), model.chat_tokenizer.encode_text(i.answer)) for i in asked]
    scored = [(b, len(i.answer.encode())) for b, i in zip(id_bits(model, rows), asked, strict=True) if b is not None]
    return sum(b for b, _ in scored) / max(sum(n for _, n in scored), 1)


def as_message(m: Mail, form: str = "body") -> Message:
    """A mail of a corpus as the product knows mails; its text is `form`: "body" or "as_written"."""
    sender, *to = (Address(p.full, "") for p in (m.sender, *m.to))
    return Message(m.key, 0, sender, tuple(to), (), m.subject, getattr(m, form), m.quoted)


def heldout(path: Path) -> list[Mail]:
    """The mails of a JSONL file as `panza measure` reads them."""
    found, _ = measure.read_mails(path)
    return [
        Mail(
            m.id, m.sender.label, _person(m.sender), tuple(map(_person, m.to)), m.subject, measure.cleaned(m).body,
            written=m.body,
        )
        for m in found
    ]  # fmt: skip


def heldout_items(mails: Sequence[Mail], count: int) -> list[Item]:
    """The instructions that `panza measure` would draw from `mails`, without the mails they answer."""
    asked = measure.requests([as_message(m) for m in mails], count)
    return [Item("write", tk.chat_text(a.chat), a.mail, a.instruction) for a in asked]


def _person(a: Address) -> Person:
    first, _, last = a.label.partition(" ")
    return Person(first, last)
