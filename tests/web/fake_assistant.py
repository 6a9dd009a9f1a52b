"""A small real assistant for the page's tests: it searches, imports, learns and writes, out of plain Python."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from panza.home import Home
from panza.mail import ImportReport
from panza.prompt import LENGTHS
from panza.types import Address, Draft, DraftRequest, Message, Progress, Thread, UserError

ME = Address("Ruth Calder", "ruth@calder.example")
ANNA = Address("Anna Lindqvist", "anna@northmill.example")
TOM = Address("Tom Okafor", "tom@okafor.example")
EVIL = '<img src=x onerror="window.pwned=1"> <script>window.pwned=2</script> ${window.pwned=3} {{value}} `'
FILLERS = [
    "Thanks for getting back to me so quickly.",
    "I looked through the numbers last night and they hold up.",
    "Let me know if that does not work for you.",
    "We can go over the rest when we speak.",
    "I would rather settle this before the end of the week.",
    "The team has everything it needs from our side.",
    "Happy to change the order if you prefer it the other way round.",
    "I will bring the printed copies along.",
    "Nothing else is open as far as I can see.",
    "Please pass it on to whoever needs to know.",
    "Call me if anything looks wrong to you.",
    "It should not take us more than half an hour.",
]


def mails() -> list[Message]:
    """Received and sent mails; one of them is made to harm a page that shows it as HTML."""

    def mail(n: int, sender: Address, subject: str, body: str, thread: str = "", quoted: str = "") -> Message:
        date = 1_700_000_000 + 86_400 * n
        mine = sender == ME
        to = (ANNA,) if mine else (ME,)
        return Message(f"{n}@test", date, sender, to, (), subject, body, quoted, thread=thread or f"t{n}", mine=mine)

    return [
        mail(1, ME, "Review of the Harbor contract", "Tuesday at 10 for the review?", "t1"),
        mail(2, ANNA, "Re: Review of the Harbor contract", "Can we still do the review on Tuesday?", "t1"),
        mail(3, TOM, "Offsite: who drives?", "I need to know by tonight.", quoted="> nine of us"),
        mail(4, Address(EVIL, "evil@harm.example"), EVIL, EVIL, quoted=EVIL),
    ]  # fmt: skip


@dataclass(frozen=True)
class Status:
    mails: int
    sent: int
    me: tuple[str, ...]
    pairs: int
    base: str
    adapter: str
    compressed: str
    indexed: int
    backend: str = "native"


class Gate:
    """Where work waits until a test has seen what it wanted to see. Open until it is shut."""

    def __init__(self):
        self._steps, self._changed = math.inf, threading.Condition()

    def shut(self) -> None:
        """Let nothing through from now on."""
        with self._changed:
            self._steps = 0

    def let(self, steps: float = math.inf) -> None:
        """Let so many more steps through; all without a number."""
        with self._changed:
            self._steps += steps
            self._changed.notify_all()

    def step(self, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Go one step as soon as it is let; False if `stopped` came first."""
        with self._changed:
            while not self._changed.wait_for(lambda: self._steps > 0, 0.02):
                if stopped():
                    return False
            self._steps -= 1
            return True


class Writer:
    """Answers with the instruction in a sentence, and as many fillers as the length asks for; the seed picks them."""

    def __init__(self, home: Home, mails: Sequence[Message] = ()):
        self.home = home
        self.mails = {m.id: m for m in mails}
        self.gate = Gate()  # each token and each step of an import or a training passes it
        self.adapter = ""

    def status(self) -> Status:
        sent = sum(m.mine for m in self.mails.values())
        me = (ME.email,) if self.mails else ()
        return Status(len(self.mails), sent, me, sent, "panza-base", self.adapter, "", len(self.mails))

    def import_mail(self, paths: Sequence[Path], me: Sequence[str], progress: Progress) -> ImportReport:
        """One mail a paragraph: first line the subject, the rest the body."""
        notes = [p for path in paths for p in path.read_text().split("\n\n") if p.strip()]
        before = len(self.mails)
        for n, note in enumerate(notes, 1):
            subject, _, body = note.partition("\n")
            sender = ME if n % 2 else Address("", "someone@else.example")
            m = Message(f"note-{n}@import", 1_000_000_000 + n, sender, (), (), subject, body, mine=bool(n % 2))
            self.mails[m.id] = m
            self.gate.step()
            progress(500_000 * n, 500_000 * len(notes), f"{n} mails")
        return ImportReport(len(notes) + 1, len(self.mails) - before, (len(notes) + 1) // 2, {"no words left": 1})

    def learn(self, progress: Progress) -> dict:
        sent = [m for m in self.mails.values() if m.mine]
        if not sent:
            raise UserError("There is no sent mail to learn from: import some first, with your own address.")
        for phase in ("writing instructions", "training"):
            for n in range(40):
                self.gate.step()
                progress(n + 1, 40, phase)
        self.adapter = f"trained on {len(sent)} mails, loss 3.10 -> 2.41"
        return {"pairs": len(sent), "heldout": 3, "loss_before": 3.1, "loss_after": 2.41, "seconds": 212.0}

    def inbox(self, query: str = "", limit: int = 50) -> list[Message]:
        words = query.lower().split()
        received = [m for m in self.mails.values() if not m.mine]
        hits = [m for m in received if all(w in f"{m.sender.label} {m.subject} {m.body}".lower() for w in words)]
        return sorted(hits, key=lambda m: -m.date)[:limit]

    def thread(self, message_id: str) -> Thread:
        m = self.message(message_id)
        members = [x for x in self.mails.values() if (x.thread or x.id) == (m.thread or m.id)]
        return Thread(m.thread or m.id, tuple(sorted(members, key=lambda x: x.date)))

    def message(self, message_id: str) -> Message:
        if message_id not in self.mails:
            raise UserError(f"There is no mail {message_id} in the mailbox.")
        return self.mails[message_id]

    def draft(self, request: DraftRequest, stopped: Callable[[], bool] = lambda: False) -> Iterator[Draft]:
        words = self.words(request)
        sources = tuple(m.id for m in self.mails.values() if m.id != request.reply_to)[:3]
        begun, subject = time.monotonic(), request.subject or " ".join(request.instruction.split()[:5]).capitalize()
        draft = Draft("", subject, sources, 0, 0.0, 0.0)
        for n in range(1, len(words) + 1):
            if stopped() or not self.gate.step(stopped):
                break
            draft = replace(draft, text="".join(words[:n]), tokens=n, seconds=time.monotonic() - begun)
            yield draft
        yield replace(draft, done=True)

    def words(self, request: DraftRequest) -> list[str]:
        """The tokens of the draft that answers `request`."""
        wanted = LENGTHS[request.length or "medium"] + 2
        fillers = FILLERS[:]
        random.Random(request.seed or 0).shuffle(fillers)
        name = request.to.split()[0].strip("<>,") if request.to else "all"
        body = [f"Hi {name},\n\n{request.instruction.rstrip('.').capitalize()}."]
        while len(" ".join(body).split()) < wanted and fillers:
            body.append(fillers.pop())
        text = " ".join(body) + (f"\n\nBest,\n{ME.name.split()[0]}" if request.length != "very short" else "")
        return [word + " " for word in text.split(" ")[:-1]] + [text.split(" ")[-1]]


class Held(Writer):
    """Its searches wait at one gate, its looks at a mail at another."""

    def __init__(self, *given: Any):
        super().__init__(*given)
        self.searching, self.opening = Gate(), Gate()

    def inbox(self, query: str = "", limit: int = 50) -> list[Message]:
        self.searching.step()
        return super().inbox(query, limit)

    def message(self, message_id: str) -> Message:
        self.opening.step()
        return super().message(message_id)
