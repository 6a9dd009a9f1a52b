"""What a model is worth on mail it has not seen: bits per byte, facts kept, drafts that end, personal data.

Knows mails in a JSONL file and a model; knows no store and no training.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from panza import prompt
from panza.dataset import compose
from panza.extract import extract
from panza.facts import facts, kept
from panza.mail.clean import clean
from panza.mail.header import addresses, human_name
from panza.mail.quoted import quoted_message
from panza.models import Completion, Sampling, TorchModel, complete_batch
from panza.personal import invented
from panza.prompt import Chat
from panza.types import Address, Message, Progress, UserError, silent

T = TypeVar("T")

MOST_TOKENS = 300  # of a draft, as in drafting
SHOWN_READERS = 3  # of a mail's header
ASKED_WORDS = range(4, 151)  # a mail that an instruction is made from: longer ones are not drafted in MOST_TOKENS


@dataclass(frozen=True)
class MeasureConfig:
    """How much to measure."""

    count: int = field(default=300, metadata={"help": "drafts, each from the instruction of one mail"})
    mails: int = field(default=0, metadata={"help": "at most this many mails for bits per byte; 0 for all"})
    seed: int = field(default=0, metadata={"help": "seed of the choice of mails"})
    cleaned: bool = field(
        default=False, metadata={"help": "bits of the texts as an import cleans them, not as they stand"}
    )

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("mails", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} {getattr(self, name)} is too small: give {least} or more.")


@dataclass(frozen=True, slots=True)
class Measures:
    """What `panza measure` prints. None where nothing was there to count."""

    bits_per_byte: float | None  # of a mail's text and its end, given the names of sender and readers and the subject
    mails: int  # that were scored
    facts_kept: float | None  # share of the instructions' facts that their greedy drafts state
    facts: int
    ended: float | None  # share of drafts that ended by themselves within MOST_TOKENS
    personal_data: int  # e-mail addresses and phone numbers in drafts that their prompts do not hold


@dataclass(frozen=True, slots=True)
class Asked:
    """An instruction made from a mail, and the prompt that asks for that mail."""

    instruction: str
    chat: Chat
    mail: str = ""  # its text


def measure(
    model: TorchModel, mails: Sequence[Message], config: MeasureConfig, progress: Progress = silent
) -> Measures:
    """All measures of `model` on `mails`. Deterministic."""
    chosen = some(mails, config.mails or len(mails), config.seed)
    bits, scored = bits_per_byte(model, chosen, progress)
    room = model.context - MOST_TOKENS
    asked = requests(mails, config.count, config.seed, lambda chat: len(model.encode(chat)) <= room)
    written = drafts(model, [a.chat for a in asked], progress)
    return Measures(bits_per_byte=bits, mails=scored, **score(asked, written))


def score(asked: Sequence[Asked], written: Sequence[Completion]) -> dict[str, Any]:
    """The fields of Measures that are about drafts."""
    pairs = list(zip(asked, written, strict=True))
    told = [kept(fact, draft.text) for a, draft in pairs for fact in facts(a.instruction)]
    private = [invented(draft.text, words_of(a.chat), "email", "phone") for a, draft in pairs]
    return {
        "facts_kept": _share(told),
        "facts": len(told),
        "ended": _share([draft.ended for draft in written]),
        "personal_data": sum(map(len, private)),
    }


def table(m: Measures) -> str:
    """The measures in words."""
    bits = "-" if m.bits_per_byte is None else f"{m.bits_per_byte:.3f}"
    kept_, ended = ("-" if share is None else f"{share:.1%}" for share in (m.facts_kept, m.ended))
    return (
        f"{bits} bits per byte of {m.mails} mails\n{kept_} of {m.facts} facts kept\n{ended} of the drafts ended by "
        f"themselves\n{m.personal_data} e-mail addresses and phone numbers that no prompt held"
    )


def some(listed: Sequence[T], count: int, seed: int = 0) -> list[T]:
    """`count` of them at random, in their order: files lie author by author."""
    chosen = random.Random(seed).sample(range(len(listed)), min(count, len(listed)))
    return [listed[i] for i in sorted(chosen)]


def _share(hits: Sequence[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None


# --- mails


def read_mails(path: Path, clean_texts: bool = False) -> tuple[list[Message], list[int]]:
    """The mails of a JSONL file (`from`, `to`, `subject`, `text`, `quoted`), and the numbers of the lines that are none.

    Texts stand as they are in the file, but for white space around them; `cleaned` if clean_texts. UserError if there is
    no such file or no mail in it.
    """
    mails, malformed = [], []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({type(error).__name__}): give a JSONL file of mails.") from None
    for n, line in enumerate(lines, 1):
        if not line.strip():
            continue
        mail = _mail(f"{path.name}:{n}", line)
        mail = cleaned(mail) if mail and clean_texts else mail
        mails.append(mail) if mail and mail.body else malformed.append(n)
    if not mails:
        raise UserError(f"'{path}' holds no mail: each line is a JSON object with 'from', 'to', 'subject' and 'text'.")
    return mails, malformed


def cleaned(mail: Message) -> Message:
    """`mail` as an import cleans it: quotes and signature cut, hard wraps undone; white space inside a line is one space."""
    words = clean(mail.body, mail.sender.name)
    body = re.sub(r"(?m)^[ \t]+|[ \t]+$|(?<=[ \t])[ \t]+", "", words.own)
    return replace(mail, body=body.strip(), quoted=mail.quoted or words.quoted)


def left_out(lines: Sequence[int]) -> str:
    """One sentence on the lines that are no mails."""
    if len(lines) == 1:
        return f"1 line is no mail and was left out: line {lines[0]}."
    return (
        f"{len(lines)} lines are no mails and were left out: {', '.join(map(str, lines[:3]))}{' …' * (len(lines) > 3)}."
    )


def _mail(key: str, line: bytes) -> Message | None:
    """One line as a message; None if it is none."""
    try:
        r = json.loads(line)
        json.dumps(r, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError):
        return None
    if not isinstance(r, dict) or not all(
        isinstance(r.get(k) or "", str) for k in ("from", "text", "subject", "quoted")
    ):
        return None
    sender = _people(r.get("from"))
    to = r.get("to")
    if not sender or not isinstance(to, str | list | None):
        return None
    listed = [p for field_ in (to if isinstance(to, list) else [to]) for p in _people(field_)]
    subject = " ".join((r.get("subject") or "").split())
    text, quoted = ((r.get(k) or "").strip() for k in ("text", "quoted"))
    return Message(key, 0, sender[0], tuple(listed), (), subject, text, quoted)


def _people(header: Any) -> tuple[Address, ...]:
    """The addresses of a field; a name alone is a person without one."""
    if not isinstance(header, str) or not header.strip():
        return ()
    return addresses(header) or (Address(human_name(header), ""),)


# --- bits per byte


def header(mail: Message) -> str:
    """What is given of a mail before its text: the names of sender and readers, and the subject."""
    fields = {
        "From": mail.sender.label,
        "To": ", ".join(p.label for p in mail.to[:SHOWN_READERS]),
        "Subject": mail.subject,
    }
    return "".join(f"{name}: {value}\n" for name, value in fields.items() if value) + "\n"


def bits_per_byte(model: TorchModel, mails: Sequence[Message], progress: Progress = silent) -> tuple[float | None, int]:
    """(bits for each UTF-8 byte of the mails' texts, each with its end, given its header; how many mails that is of).

    Each mail stands alone after the mark that opens a text. Mails that the context does not hold are left out.
    """
    bits = text_bits(model, [(header(m), m.body) for m in mails], progress)
    scored = [(b, len(m.body.encode())) for b, m in zip(bits, mails, strict=True) if b is not None]
    size = sum(n for _, n in scored)
    return (sum(b for b, _ in scored) / size if size else None), len(scored)


def opening(model: TorchModel) -> list[int]:
    """The mark that opens a text, if the model has one."""
    mark = model.chat_tokenizer.tokenizer.bos_token_id
    return [] if mark is None else [mark]


Row = tuple[list[int], list[int]]  # ids of what is given, ids of what is scored


def text_bits(
    model: TorchModel, pairs: Sequence[tuple[str, str]], progress: Progress = silent, batch_tokens: int = 2000
) -> list[float | None]:
    """Bits of the second text of each pair and its end, given the mark that opens a text and the first; see `id_bits`."""
    encode = model.chat_tokenizer.encode_text
    return id_bits(model, [(opening(model) + encode(a), encode(b)) for a, b in pairs], progress, True, batch_tokens)


def id_bits(
    model: TorchModel, rows: Sequence[Row], progress: Progress = silent, end: bool = True, batch_tokens: int = 2000
) -> list[float | None]:
    """Bits of the second part of each row given the first, with its end if `end`; None where the context is too short.

    The end is any token that stands between texts or ends an answer: one event, whichever mark a model uses for it.
    """
    bits: list[float | None] = [None] * len(rows)
    fitting = [i for i, (a, b) in enumerate(rows) if a and b and len(a) + len(b) <= model.context]
    done = 0
    for chunk in _by_length(fitting, [len(a) + len(b) for a, b in rows], batch_tokens):
        for i, value in zip(chunk, _batch_bits(model, [rows[i] for i in chunk], end), strict=True):
            bits[i] = value
        done += len(chunk)
        progress(done, len(fitting), "bits per byte")
    return bits


def _by_length(items: Sequence[int], lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Batches of rows of like length, at most `batch_tokens` with their padding, but one row at least."""
    batch: list[int] = []
    for i in sorted(items, key=lambda i: lengths[i]):
        if batch and lengths[i] * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _batch_bits(model: TorchModel, rows: Sequence[Row], end: bool) -> list[float]:
    """Bits of the second part of each row. Padding stands at the end, where causal attention does not look."""
    import torch

    longest = max(len(a) + len(b) for a, b in rows)
    ids = torch.tensor([a + b + [0] * (longest - len(a) - len(b)) for a, b in rows], device=model.net.device)  # (B, T)
    ends = sorted(model.chat_tokenizer.stop_ids)
    bits = []
    with torch.inference_mode():
        logits = model.net(input_ids=ids).logits  # (B, T, V)
        for row, tokens, (a, b) in zip(logits, ids, rows, strict=True):
            here = slice(len(a), len(a) + len(b))
            logp = row[len(a) - 1 : len(a) + len(b)].float().log_softmax(-1)  # (len(b) + 1, V)
            nats = logp[:-1].gather(1, tokens[here, None]).sum()
            nats = nats + logp[-1, ends].logsumexp(0) if end else nats
            bits.append(-nats.item() / math.log(2))
    return bits


# --- drafts


def requests(
    mails: Sequence[Message], count: int, seed: int = 0, fits: Callable[[Chat], bool] = lambda chat: True
) -> list[Asked]:
    """An instruction for each of `count` mails at random, and the prompt that drafting would make of it.

    Instructions are drawn from the cleaned texts by rules, sentences and keywords in turn. A mail that quotes another one
    answers it.
    fits: whether a prompt leaves room for its answer.
    """
    usable = [m for m in map(cleaned, mails) if len(m.body.split()) in ASKED_WORDS]
    styles = tuple(prompt.INSTRUCTION_STYLES)
    return [_asked(m, styles[i % len(styles)], fits) for i, m in enumerate(some(usable, count, seed))]


def _asked(mail: Message, style: str, fits: Callable[[Chat], bool]) -> Asked:
    answered = quoted_message(mail) if mail.quoted else None
    instruction = extract(mail, style)
    chat, _ = compose(
        instruction,
        sender=mail.sender.label,
        recipient=mail.to[0].label if mail.to else "",
        subject=mail.subject,
        length="",
        thread=[answered] if answered else [],
        retrieved=[],
        fits=fits,
    )
    return Asked(instruction, chat, mail.body)


def drafts(model: TorchModel, chats: Sequence[Chat], progress: Progress = silent) -> list[Completion]:
    """A greedy draft for each prompt, in order."""
    written: dict[int, Completion] = {}
    for i, draft in complete_batch(model, [model.encode(c) for c in chats], Sampling(MOST_TOKENS)):
        written[i] = draft
        progress(len(written), len(chats), "drafting")
    return [written[i] for i in range(len(chats))]


def words_of(chat: Chat) -> str:
    """All that a prompt says."""
    return "\n".join(m["content"] for m in chat)
