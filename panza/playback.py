"""Data playback: each sent mail becomes the instruction that would have led to it (PanzaMail, arXiv 2407.10994).

The model proposes, checks decide, rules (panza.extract) stand in. The result is a JSONL file that the user may edit.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from panza import prompt
from panza.extract import extract
from panza.facts import facts, kept
from panza.models import Sampling, TorchModel, generate_batch
from panza.types import Message, PlaybackPair, Progress, UserError, silent

MOST_COPIED = 7  # words in a row that an instruction may share with its mail, facts aside
MOST_WORDS = 60
_PREFIX = re.compile(r"^\W*(?:instructions?|prompt|task|summary|keywords?|here(?:'s| is)[^:\n]*)\s*:\s*", re.IGNORECASE)


@dataclass(frozen=True)
class PlaybackConfig:
    """How mails are turned into instructions."""

    tries: int = field(default=2, metadata={"help": "model answers per mail before rules take over; 0: rules alone"})
    keywords_share: float = field(
        default=0.34, metadata={"help": "share of instructions that are keywords, as people type"}
    )
    least_words: int = field(default=3, metadata={"help": "shorter mails are not used"})
    most_words: int = field(default=300, metadata={"help": "longer mails are not used"})
    latest: int = field(default=1000, metadata={"help": "at most this many mails, the newest"})
    batch: int = field(default=8, metadata={"help": "mails that the model plays back at once"})

    def __post_init__(self) -> None:
        for name in ("batch", "latest", "most_words"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)} is too small: give 1 or more.")


@dataclass(frozen=True, slots=True)
class PlaybackReport:
    pairs: int
    by: dict[str, int]  # how -> pairs
    rejected: dict[str, int]  # reason -> model answers or mails not used


def play_back(
    messages: Iterable[Message],
    model: TorchModel | None,
    file: Path,
    config: PlaybackConfig,
    progress: Progress = silent,
) -> PlaybackReport:
    """Append a line to `file` for each sent mail that has none yet. A kill loses at most one batch."""
    done = {line["message_id"] for line in _lines(file)}
    rejected: Counter[str] = Counter()
    todo = [m for m in _usable(messages, config, rejected) if m.id not in done]
    file.parent.mkdir(parents=True, exist_ok=True)
    _drop_half_line(file)
    with file.open("a", encoding="utf-8") as out:
        for start in range(0, len(todo), config.batch):
            progress(start, len(todo), "playing back sent mail")
            for pair in _batch(todo[start : start + config.batch], model, config, rejected):
                out.write(_line(pair) + "\n")
            out.flush()
    progress(len(todo), len(todo), "playing back sent mail")
    by = Counter({line["message_id"]: line["how"] for line in _lines(file)}.values())
    return PlaybackReport(sum(by.values()), dict(by), dict(rejected))


def read_pairs(file: Path, messages: Iterable[Message]) -> list[PlaybackPair]:
    """The pairs in `file` whose mails are among `messages`, by date."""
    by_id = {line["message_id"]: line for line in _lines(file)}
    pairs = []
    for m in messages:
        if (line := by_id.get(m.id)) and line["instruction"].strip():
            pairs.append(PlaybackPair(m, line["instruction"].strip(), line["how"]))
    return sorted(pairs, key=lambda p: p.message.date)


def count(file: Path) -> int:
    """How many mails `file` holds an instruction for."""
    return len({line["message_id"] for line in _lines(file)})


def style_of(message: Message, config: PlaybackConfig) -> str:
    """The instruction style of a mail: fixed by its id, so that a resumed run agrees with the first."""
    draw = sum(message.id.encode()) % 100
    return "keywords" if draw < 100 * config.keywords_share else "sentence"


def reject(instruction: str, message: Message) -> str:
    """Why `instruction` will not do for `message`; "" if it will."""
    words = instruction.split()
    if not re.search(r"\w", instruction):
        return "empty"
    if _PREFIX.match(instruction):
        return "prefix left"
    if "\n" in instruction.strip() or len(re.findall(r"[.!?](?=\s|$)", instruction)) > 3 or len(words) > MOST_WORDS:
        return "too long"
    if len(message.body.split()) > 8 and len(words) > 1.2 * len(message.body.split()):
        return "longer than the mail"
    if _longest_copy(instruction, message.body) > MOST_COPIED:
        return "copied"
    asked = facts(message.body)[:4]
    if asked and sum(kept(f, instruction) for f in asked) * 2 < len(asked):
        return "facts missing"
    known = " ".join([message.body, message.subject, message.quoted, *(a.label for a in (*message.to, message.sender))])
    if any(not kept(f, known) and not _words(f) <= _words(known) for f in facts(instruction)):
        return "facts invented"
    return ""


def _batch(
    messages: Sequence[Message], model: TorchModel | None, config: PlaybackConfig, rejected: Counter[str]
) -> Iterator[PlaybackPair]:
    """Ask the model up to `tries` times, each time for the mails still without an instruction; then the rules."""
    found: dict[str, str] = {}
    for attempt in range(config.tries if model else 0):
        left = [m for m in messages if m.id not in found]
        chats = [prompt.play_back(m, style_of(m, config)) for m in left]
        sampling = Sampling(max_tokens=80, temperature=0.0 if attempt == 0 else 0.6, seed=attempt)
        for i, answer in generate_batch(model, chats, sampling, config.batch):
            instruction = _PREFIX.sub("", answer).strip()
            if reason := reject(instruction, left[i]):
                rejected[reason] += 1
            else:
                found[left[i].id] = instruction
    for m in messages:
        how = "model" if m.id in found else "extractive"
        yield PlaybackPair(m, found.get(m.id) or extract(m, style_of(m, config)), how)


def _usable(messages: Iterable[Message], config: PlaybackConfig, rejected: Counter[str]) -> list[Message]:
    """The newest `latest` mails that are neither too short, too long nor a repeat of another."""
    usable: list[Message] = []
    bodies: set[str] = set()
    for m in messages:
        words = m.body.split()
        reason = (
            "mail too short" if len(words) < config.least_words
            else "mail too long" if len(words) > config.most_words
            else "mail repeated" if " ".join(words).lower() in bodies
            else ""
        )  # fmt: skip
        bodies.add(" ".join(words).lower())
        if reason:
            rejected[reason] += 1
        else:
            usable.append(m)
    return sorted(usable, key=lambda m: m.date)[-config.latest :]


def _longest_copy(instruction: str, body: str) -> int:
    """The longest run of words that both hold, names, numbers and other facts not counted."""
    a, b = (re.findall(r"[\w']+", t.lower()) for t in (instruction, body))
    fact_words = {w for f in facts(body) for w in _words(f)}
    best, row = 0, [0] * (len(b) + 1)
    for word in a:
        new = [0] * (len(b) + 1)
        for j, other in enumerate(b):
            if word == other:
                new[j + 1] = row[j] + (word not in fact_words)
                best = max(best, new[j + 1])
        row = new
    return best


def _words(text: str) -> set[str]:
    return set(re.findall(r"[\w']+", text.lower()))


def _line(pair: PlaybackPair) -> str:
    m = pair.message
    head = {"message_id": m.id, "instruction": pair.instruction, "how": pair.how}
    return json.dumps(
        {**head, "to": ", ".join(a.label for a in m.to), "subject": m.subject, "mail": m.body}, ensure_ascii=False
    )


def _lines(file: Path) -> Iterator[dict[str, str]]:
    """The lines of a playback file; the last line for a Message-ID wins when read into a dict."""
    if not file.exists():
        return
    lines = file.read_bytes().decode("utf-8").split("\n")  # JSON leaves other line ends, such as U+2028, as they are
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            yield {
                "message_id": str(line["message_id"]),
                "instruction": str(line["instruction"]),
                "how": str(line.get("how", "written")),
            }
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                return  # a kill cut the last line: it is played back again
            raise UserError(
                f"Line {number} of {file} is not a JSON object with message_id and instruction: mend or delete the line."
            ) from error


def _drop_half_line(file: Path) -> None:
    if file.exists():
        data = file.read_bytes()
        if data and not data.endswith(b"\n"):
            with file.open("r+b") as out:
                out.truncate(data.rfind(b"\n") + 1)
