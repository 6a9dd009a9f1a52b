"""What a model is worth: bits per byte, facts kept, drafts that end, personal data. Knows items; knows no training."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from transformers import LlamaForCausalLM

from panza import prompt
from panza.extract import middle
from panza.facts import facts, kept
from pretrain import tokenizer as tk
from pretrain.corpus import PERSONAL, Mail, addresses, clean, newest_quoted, person
from pretrain.names import collect
from pretrain.pack import plain_mail
from pretrain.pairs import Item, Rates, items
from pretrain.swap import Unswapped

T = TypeVar("T")
MOST_TOKENS = 300  # of a draft

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


def heldout(path: Path) -> list[Mail]:
    """Mails of a JSONL file (`text`, `from`, `to`, `subject`, `quoted`), cleaned as the corpora are."""
    found = []
    for n, line in enumerate(path.open(encoding="utf-8")):
        r = json.loads(line)
        rng = random.Random(n)
        who, quoted = newest_quoted(r.get("quoted", ""))
        body = clean(r["text"], rng)
        if len(body.split()) >= 3:
            subject = " ".join(r.get("subject", "").split())
            found.append(
                Mail(
                    f"{n}", r["from"], person(r["from"]), addresses(r.get("to")), subject, body, clean(quoted, rng), who
                )
            )
    return found


def heldout_items(mails: Sequence[Mail], count: int, seed: int = 0) -> list[Item]:
    """`count` write items with the names and facts that the mails have, letters left as they are."""
    rates = Rates(play_back=0, title=0, needed=0, letter=0, dictated=0.05)
    names = collect(p for m in mails for p in (m.sender, *m.to))
    made = list(items(mails, names, str(seed), rates, swap=Unswapped))
    return some(made, count, seed)


def some(listed: Sequence[T], count: int, seed: int = 0) -> list[T]:
    """`count` of them at random: the corpora lie author by author."""
    return random.Random(seed).sample(list(listed), min(count, len(listed)))


@torch.no_grad()
def drafts(model: LlamaForCausalLM, folder: Path, prompts: Sequence[str], batch: int = 16) -> list[tuple[str, bool]]:
    """(text, ended by itself) of a greedy draft for each prompt. folder: where tokenizer.json lies."""
    tokenizer = tk.load(folder)
    end, pad = tokenizer.token_to_id(tk.END), tokenizer.token_to_id(tk.END_OF_TEXT)
    room = model.config.max_position_embeddings - MOST_TOKENS
    asked = [tokenizer.encode(p).ids[-room:] for p in prompts]
    out: dict[int, tuple[str, bool]] = {}
    order = sorted(range(len(asked)), key=lambda i: len(asked[i]))
    for at in range(0, len(order), batch):
        chunk = order[at : at + batch]
        longest = max(len(asked[i]) for i in chunk)
        x = torch.tensor([[pad] * (longest - len(asked[i])) + asked[i] for i in chunk], device=model.device)
        mask = torch.tensor([[0] * (longest - len(asked[i])) + [1] * len(asked[i]) for i in chunk], device=model.device)
        y = model.generate(
            x, attention_mask=mask, max_new_tokens=MOST_TOKENS, eos_token_id=end, pad_token_id=pad, do_sample=False
        )
        for i, ids in zip(chunk, y[:, longest:].tolist(), strict=True):
            ended = end in ids
            out[i] = (tokenizer.decode(ids[: ids.index(end)] if ended else ids), ended)
    return [out[i] for i in range(len(asked))]


def invented(text: str, prompt_text: str) -> list[str]:
    """E-mail addresses and phone numbers of `text` that its prompt does not hold."""
    return [
        m.group()
        for pattern, _ in (PERSONAL[0], PERSONAL[3])
        for m in pattern.finditer(text)
        if m.group() not in prompt_text
    ]


def score(asked: Sequence[Item], written: Sequence[tuple[str, bool]]) -> dict[str, float]:
    """Shares over drafts; `facts_kept` over the facts of their instructions."""
    told = [(f, text) for item, (text, _) in zip(asked, written, strict=True) for f in facts(item.instruction)]
    return {
        "drafts": len(asked),
        "facts": len(told),
        "facts_kept": sum(kept(f, text) for f, text in told) / max(len(told), 1),
        "ended": sum(ended for _, ended in written) / max(len(asked), 1),
        "personal_data": sum(bool(invented(text, item.prompt)) for item, (text, _) in zip(asked, written, strict=True)),
        "words": sum(len(text.split()) for text, _ in written) / max(len(asked), 1),
        "words_reference": sum(len(i.answer.split()) for i in asked) / max(len(asked), 1),
        "empty": sum(not middle(text).strip() for text, _ in written),
    }


@torch.no_grad()
def bits_per_byte(
    model: LlamaForCausalLM, folder: Path, pairs: Sequence[tuple[str, str]], end: str, batch: int = 16
) -> float:
    """Bits for each byte of the second text of each pair, the `end` mark included, given the first."""
    tokenizer = tk.load(folder)
    mark, context = tokenizer.token_to_id(end), model.config.max_position_embeddings
    made = sorted(
        ([tokenizer.encode(a).ids, tokenizer.encode(b).ids + [mark], len(b.encode())] for a, b in pairs),
        key=lambda p: len(p[0]) + len(p[1]),
    )
    nats, size = 0.0, 0
    for at in range(0, len(made), batch):
        chunk = [(a, b, n) for a, b, n in made[at : at + batch] if len(a) + len(b) <= context]
        if not chunk:
            continue
        longest = max(len(a) + len(b) for a, b, _ in chunk)
        x = torch.zeros(len(chunk), longest, dtype=torch.long)
        y = torch.full((len(chunk), longest), -100)
        for i, (a, b, _) in enumerate(chunk):
            x[i, : len(a) + len(b)] = torch.tensor(a + b)
            y[i, len(a) : len(a) + len(b)] = torch.tensor(b)
        logits = model(x.to(model.device)).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), y[:, 1:].flatten().to(model.device), ignore_index=-100, reduction="sum"
        )
        nats += loss.item()
        size += sum(n for _, _, n in chunk)
    return nats / math.log(2) / size


def plain_pairs(mails: Sequence[Mail]) -> list[tuple[str, str]]:
    """(end-of-text and header, body) of each mail: sender, readers and subject are given."""
    heads = (plain_mail(m.sender.full, [p.full for p in m.to[:3]], m.subject, "") for m in mails)
    return [(tk.END_OF_TEXT + head, m.body) for head, m in zip(heads, mails, strict=True)]


def report(model: LlamaForCausalLM, folder: Path, mails: Sequence[Mail], asked: Sequence[Item]) -> dict[str, float]:
    """All measures of `model` on mails and items."""
    written = drafts(model, folder, [i.prompt for i in asked])
    return {
        "bits_per_byte": bits_per_byte(model, folder, plain_pairs(mails), tk.END_OF_TEXT),
        "mails": len(mails),
        "bits_per_byte_instructed": bits_per_byte(model, folder, [(i.prompt, i.answer) for i in asked], tk.END),
        **score(asked, written),
    }
