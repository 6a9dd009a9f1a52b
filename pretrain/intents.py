"""What people most often ask a mail assistant for, with many ways to ask and to write it: short mails put together from tables.

Real mail seldom shows an instruction such as "decline politely" beside its answer; these items do. Each slot is drawn once
and stands in the instruction and in the mail, so the model learns to carry it over. Knows words only.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.names import PLACES, Names, new_firm
from pretrain.private import invented_word


@dataclass(frozen=True)
class Told:
    """One point of a mail: how it is asked for, and the sentences that say it."""

    instruction: str
    mail: str


def told(rng: random.Random, names: Names, to: str, they: str) -> list[Told]:
    """One to four points for one mail to `to`."""
    count = rng.choice((1, 1, 1, 2, 2, 2, 3, 3, 4))
    return [
        _point(intent, rng, names, to if i == 0 else "", they) for i, intent in enumerate(rng.sample(INTENTS, count))
    ]


def _point(intent: Intent, rng: random.Random, names: Names, to: str, they: str) -> Told:
    asked, mails = rng.choice(intent.pairs)
    forms = dict(_PRONOUNS[they], to=to or _PRONOUNS[they]["them"])
    slots = _Slots(rng, names, forms)
    instruction = slots.fill(asked, {"your": forms["their"]})
    mail = slots.fill(rng.choice(mails), {"your": "your"})
    return Told(instruction, re.sub(r"(?:^|(?<=[.!?] ))[a-z]", lambda m: m.group().upper(), mail))


_PRONOUNS = {
    "they": {"they": "they", "them": "them", "their": "their", "is": "are", "has": "have", "think": "think"},
    "he": {"they": "he", "them": "him", "their": "his", "is": "is", "has": "has", "think": "thinks"},
    "she": {"they": "she", "them": "her", "their": "her", "is": "is", "has": "has", "think": "thinks"},
}


class _Slots:
    """Values for the slots in braces: drawn once, then the same. Persons differ between instruction and mail."""

    def __init__(self, rng: random.Random, names: Names, forms: dict[str, str]):
        self.rng, self.names, self.values = rng, names, dict(forms)

    def fill(self, template: str, persons: dict[str, str]) -> str:
        text = template
        for _ in range(4):  # slots within slots
            text = re.sub(r"\{(\w+)\}", lambda m: persons.get(m[1]) or self._value(m[1]), text)
        return re.sub(r"\bon (?=tomorrow|next )", "", text)

    def _value(self, slot: str) -> str:
        if slot not in self.values:
            self.values[slot] = self._drawn(re.sub(r"\d$", "", slot))
        return self.values[slot]

    def _drawn(self, kind: str) -> str:
        rng = self.rng
        if kind in SLOTS:
            return rng.choice(SLOTS[kind])
        while (made := _MADE[kind](rng, self.names)) in self.values.values():
            pass
        return made


def _time(rng: random.Random) -> str:
    hour, minute = rng.randint(1, 12), rng.choice(("00", "15", "30", "45"))
    half = rng.choice(("am", "pm"))
    return rng.choice(
        (f"{hour}{half}", f"{hour} {half}", f"{hour}:{minute} {half}", f"{hour}:{minute}{half}", f"{hour}:{minute}")
    )


def _date(rng: random.Random) -> str:
    month = rng.choice(
        "January February March April May June July August September October November December Jan Feb Sept Oct Nov Dec".split()
    )
    day = rng.randint(1, 28)
    return rng.choice((f"{month} {day}", f"{month} {day}", f"{day} {month}", f"{rng.randint(1, 12)}/{day}"))


def _amount(rng: random.Random) -> str:
    n = rng.choice((rng.randint(5, 99), rng.randint(1, 9) * 100, rng.randint(10, 99) * 50, rng.randint(1000, 99999)))
    return rng.choice((f"${n:,}", f"${n:,}", f"${n}", f"{n:,} euros", f"{n} dollars", f"${rng.randint(1, 99)}k"))


def _person(rng: random.Random, names: Names) -> str:
    return names.new_first(rng) if rng.random() < 0.6 else f"{names.new_first(rng)} {names.new_last(rng)}"


_MADE = {
    "day": lambda r, n: r.choice(("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "tomorrow", "next Monday", "next Tuesday",
                                  "next Wednesday", "next Thursday", "next Friday")),
    "time": lambda r, n: _time(r),
    "date": lambda r, n: _date(r),
    "amount": lambda r, n: _amount(r),
    "n": lambda r, n: str(r.choice((r.randint(2, 12), r.randint(2, 40), r.randint(10, 400)))),
    "code": lambda r, n: r.choice((str(r.randint(100, 99999)), f"{r.choice('ABCDEFGHKLMPQRSTX')}{r.randint(1, 999)}", f"{r.randint(10, 99)}-{r.randint(100, 999)}")),
    "name": _person,
    "who": lambda r, n: n.new_first(r),
    "city": lambda r, n: r.choice(PLACES),
    "firm": lambda r, n: r.choice((new_firm(r), f"{n.new_last(r)} & {n.new_last(r)}", invented_word(r).capitalize())),
    "project": lambda r, n: r.choice((invented_word(r).capitalize(), f"{n.new_last(r)}", f"{r.choice(PLACES)}", new_firm(r))),
    "room": lambda r, n: r.choice((f"room {r.randint(1, 999)}", f"room {r.randint(1, 20)}{r.choice('ABC')}", f"the {r.choice(PLACES)} room", "my office", "the cafeteria", "the lobby")),
    "place": lambda r, n: r.choice((f"{n.new_first(r)}'s", f"the {r.choice(('Blue', 'Golden', 'Old', 'Green', 'Red'))} {r.choice(('Lion', 'Door', 'Garden', 'Mill', 'Anchor'))}", f"Cafe {invented_word(r).capitalize()}")),
    "when": lambda r, n: r.choice(("{day}", "{day} at {time}", "{date}", "{day}, {date}", "{date} at {time}", "{day} {time}")),
    "when_b": lambda r, n: r.choice(("{dayb}", "{dayb} at {timeb}", "{dateb}", "{dayb} {timeb}")),
}  # fmt: skip
_MADE |= {k: _MADE[k[:-1]] for k in ("dayb", "timeb", "dateb", "amountb", "nameb", "cityb", "nb")}

SLOTS: dict[str, Sequence[str]] = {
    "event": """the meeting|the review|the call|the workshop|the interview|the demo|our lunch|the dinner|the training|the kickoff|the board meeting|the {project}
        meeting|the {project} review|the budget meeting|the team lunch|the conference call|our appointment|the site visit|the presentation|the game""".split("|"),
    "doc": """the report|the draft|the contract|the invoice|the slides|the numbers|the agenda|the spreadsheet|the {project} file|the budget|the proposal|the minutes|the
        schedule|the quote|the list of guests|the floor plan|the {project} contract|the test results|the sales figures|the Q{q} numbers|the photos|the form""".split("|"),
    "q": "1|2|3|4".split("|"),
    "vp": """send {me} {doc} by {when}|call me at {time}|review {doc} before {day}|book a table for {n} at {place}|drive us to the airport on {day} at {time}|come to {event} on
        {day}|pick up {name} at the station at {time}|forward {doc} to {name}|check the figures for {project}|sign {doc} and send it back by {day}|order {n} chairs for {room}|meet
        {name} in {city} on {date}|bring {doc} on {day}|reserve {room} for {day}|give {name} a call|present {project} on {when}|pay invoice {code} by {date}|update {doc} with the new
        prices|stop by {room} at {time}|take {name} to lunch on {day}|cover for me on {day}|look at page {n} of {doc}|print {n} copies of {doc}|water the plants until {day}|help {name} with {doc}""".split("|"),
    "me": "me|us|{name}".split("|"),
    "reason": "I am sick|I have a doctor's appointment|I will be in {city}|my flight is late|I have another meeting|my car broke down|I have to pick up {name}|the budget is only {amount}|I am travelling".split("|"),
    "good": "the new job in {city}|the promotion|the {project} deal|the new baby|the award|passing the exam|the new house|the great presentation|{your} work on {project}".split("|"),
    "favour": "the report|the help with {doc}|the quick answer|lunch on {day}|the flowers|{your} help with {project}|the tickets|the invitation|the update on {project}|dinner last night|driving {name} to {city}|everything".split("|"),
    "thing": "the offer|the invitation|the request|the proposal|the job|the offer from {firm}|the invitation to {city}".split("|"),
    "role": "runs logistics in {city}|is our new accountant|works for {firm}|leads sales in {city}|will take over {project}|is looking for work in {city}|designs kitchens".split("|"),
    "problem": "the printer in {room} is broken|order {code} has not arrived|the link to {doc} does not work|invoice {code} is wrong: it should be {amount}|the heating is off|page {n} of {doc} is missing|we were charged {amount} twice".split("|"),
}  # fmt: skip
SLOTS = {k: tuple(" ".join(v.split()) for v in values) for k, values in SLOTS.items()}


@dataclass(frozen=True)
class Intent:
    """`pairs`: each way to ask with the ways to say it that hold the same slots, so that nothing is lost or made up."""

    pairs: tuple[tuple[str, tuple[str, ...]], ...]


_PERSONS = frozenset(("to", "they", "them", "their", "is", "has", "think"))


def _slots(template: str) -> frozenset[str]:
    return frozenset(re.findall(r"\{(\w+)\}", template)) - _PERSONS


def _intent(asked: str, said: str) -> Intent:
    ways, mails = ([" ".join(p.split()) for p in text.split("|")] for text in (asked, said))
    pairs = ((a, tuple(m for m in mails if _slots(m) == _slots(a))) for a in ways)
    return Intent(tuple((a, same) for a, same in pairs if same))


# Each line: ways to ask | ... ; ways to say | ...
INTENTS: tuple[Intent, ...] = tuple(
    _intent(asked, said)
    for asked, said in (
        ("ask {to} to {vp}|ask {to} if {they} can {vp}|ask if {they} can {vp}|pls ask {to} if {they} can {vp}|see if {they} could {vp}|get {them} to {vp}|request that {they} {vp}|need {them} to {vp}",
         "Can you {vp}?|Could you please {vp}?|Would you be able to {vp}?|Please {vp}.|Could you {vp}?|Can you please {vp}?"),
        ("remind {to} to {vp}|remind {them} to {vp}|reminder: {vp}|tell {to} not to forget to {vp}",
         "Please remember to {vp}.|Just a reminder to {vp}.|Don't forget to {vp}.|A quick reminder: please {vp}."),
        ("decline {thing} politely|politely decline {thing}|say no to {thing}|turn down {thing} nicely|decline {thing}|tell {to} I have to decline {thing}",
         "Thank you for {thing}, but I have to decline.|Thank you very much for {thing}. Unfortunately I have to decline.|I appreciate {thing}, but I am afraid I can't accept it.|Many thanks for {thing}. I am sorry to say that I will have to pass."),
        ("decline {event} on {day}, {reason}|can't come to {event} on {day}, {reason}|say I can't make it to {event} on {day} because {reason}|tell {to} I won't be at {event} on {day}: {reason}",
         "I am sorry, but I can't come to {event} on {day}: {reason}.|Unfortunately I can't make it to {event} on {day} because {reason}.|I won't be able to make {event} on {day}, {reason}. Sorry about that."),
        ("accept {thing}|say yes to {thing}|accept {thing} with thanks|tell {to} I accept {thing}",
         "Thank you for {thing}. I am happy to accept.|I would be glad to accept {thing}. Thank you!|Yes, I gladly accept {thing}."),
        ("move {event} from {day} to {dayb}|reschedule {event} from {when} to {when_b}|{event} moves from {day} to {dayb} at {timeb}|tell {to} {event} is moved from {day} to {dayb}|ask to move {event} from {day} to {dayb}",
         "{event} has to move from {when} to {when_b}. I hope that works for you.|Can we reschedule {event} from {when} to {when_b}?|{event} moves from {day} to {dayb} at {timeb}.|We have to move {event} from {day} to {dayb} at {timeb}.|We have to move {event} from {day} to {dayb}. I hope that works for you.|Can we move {event} from {day} to {dayb}?|I would like to move {event} from {day} to {dayb}. Is that all right with you?"),
        ("tell {to} {event} moves to {when}|{event} now {when}|say {event} is now on {when}|let {to} know that {event} has moved to {when}",
         "{event} moves to {when}.|Please note that {event} is now on {when}.|{event} has been moved to {when}."),
        ("offer {day} or {dayb} for {event}|suggest {day} or {dayb} for {event}|I am free {day} and {dayb} for {event}|ask which day suits {them} for {event}, {day} or {dayb}|free {day}, {dayb} for {event}?",
         "I could do {day} or {dayb} for {event}. Which day suits you better?|Would {day} or {dayb} work for {event}?|I am free on {day} and on {dayb} for {event}. What would you prefer?"),
        ("can't make {day}, move to {dayb} {timeb}|can't do {day}, how about {dayb} at {timeb}|not free {day}, propose {dayb} {timeb}",
         "I can't make it {day}. Can we move to {dayb} at {timeb}?|{day} does not work for me. How about {dayb} at {timeb} instead?|Sorry, I can't make {day}. Would {dayb} at {timeb} work for you?"),
        ("ask when {event} is|ask {to} when {event} starts|when is {event}?|find out when {event} is", "When is {event}?|Could you tell me when {event} is?|Do you know when {event} is?"),
        ("ask {to} if {they} {is} free {when}|ask if {when} works for {them}|free {when}?|check whether {they} {has} time {when}",
         "Are you free {when}?|Do you have time {when}?|Would {when} work for you?"),
        ("confirm {event} on {when}|confirm {event} for {when} in {room}|say {event} on {when} is confirmed|yes to {event}, {when}",
         "I confirm {event} on {when}. We meet in {room}.|{event} on {when} in {room} is confirmed.|I confirm {event} on {when}.|{event} on {when} is confirmed.|Yes, {event} on {when} works for me. See you then."),
        ("confirm dinner at {time} on {date}, table for {n} at {place}|dinner {date} {time}, {place}, table for {n}|confirm table for {n} at {place}, {date} at {time}",
         "I confirm dinner on {date} at {time}. We have a table for {n} at {place}.|Dinner is on {date} at {time} at {place}, a table for {n}.|This confirms our dinner at {place} on {date} at {time}: a table for {n}."),
        ("invite {to} to lunch {when} at {place}|ask {to} if {they} would like to have lunch {when} at {place}|lunch {when} at {place}?|invite {them} to {place} {when}",
         "Would you like to have lunch {when} at {place}?|How about lunch {when} at {place}?|I would like to invite you to lunch {when} at {place}."),
        ("thank {to} for {favour}|thanks for {favour}|say thanks for {favour}|thank {them} for {favour}|say thank you for {favour}",
         "Thank you for {favour}.|Thanks for {favour}!|Thank you very much for {favour}.|Many thanks for {favour}. It was a great help."),
        ("congratulate {to} on {good}|congrats on {good}|say congratulations on {good}|congratulate {them} on {good}",
         "Congratulations on {good}!|Congratulations on {good}. I am very happy for you.|I just heard the news. Congratulations on {good}!"),
        ("apologise for the late reply|sorry for late reply|apologize for not answering sooner|say sorry for the delay",
         "I am sorry for the late reply.|Sorry for the delay in getting back to you.|I apologise for not answering sooner.|Please excuse my late reply."),
        ("apologise for missing {event} on {day}|sorry I missed {event} on {day}|say sorry that I missed {event} on {day}|apologize to {to} that I missed {event} on {day}",
         "I am sorry that I missed {event} on {day}.|I apologise for missing {event} on {day}.|Sorry I missed {event} on {day}."),
        ("I'll look at {doc} tonight and send comments {day}|will read {doc} and reply by {day}|say I will look at {doc} and send comments {day}|promise comments on {doc} by {day}",
         "I will look at {doc} tonight and send you my comments {day}.|I am going to read {doc} and will get back to you with comments by {day}.|I will go through {doc} and you will have my comments by {day}."),
        ("send {doc}|attach {doc}|here is {doc}|send {to} {doc} as asked|forward {doc}",
         "Attached is {doc}.|Please find {doc} attached.|Here is {doc}.|As you asked, here is {doc}."),
        ("tell {to} {doc} is due {when}|{doc} due {when}|say {doc} is due on {when}|remind {to} that {doc} is due {when}",
         "{doc} is due {when}.|Please note that {doc} is due {when}.|Just a reminder that {doc} is due {when}."),
        ("invoice {code} is paid, next one due {date}|tell {to} invoice {code} is paid and the next one is due {date}|invoice {code} paid; next due {date}",
         "Invoice {code} is paid. The next one is due {date}.|We have paid invoice {code}. The next one is due on {date}."),
        ("ask about the price of {n} tickets|ask {to} how much {n} tickets cost|price for {n} tickets?|how much for {n} tickets", "How much are {n} tickets?|Could you tell me the price of {n} tickets?|What would {n} tickets cost?"),
        ("tell {to} it costs {amount}|price is {amount}|say the price is {amount}|quote {amount}", "The price is {amount}.|It costs {amount}.|That would be {amount} in total."),
        ("budget only {amount}|tell {to} the budget is only {amount}|say our budget is {amount}, not {amountb}|explain that we can spend {amount} at most",
         "Our budget is {amount}, not {amountb}.|I am afraid our budget is {amount} and not {amountb}.|Our budget is only {amount}.|I am afraid we can spend {amount} at most.|We have only {amount} for this."),
        ("{n} tickets for {event} {day}, {amount} each, want one?|offer {to} a ticket for {event} on {day}, {amount} each, I have {n}|ask if {they} want one of my {n} tickets for {event} on {day}, {amount} each",
         "I have {n} tickets for {event} on {day}. They are {amount} each. Would you like one?|Would you like a ticket for {event} on {day}? I have {n} of them, {amount} each."),
        ("office closed {day}, back {dayb}, call {name} if urgent|tell {to} the office is closed {day} and we are back {dayb}; {name} for urgent things|closed {day}, open again {dayb}, urgent: {name}",
         "The office is closed {day}. We will be back {dayb}. If it is urgent, please call {name}.|We are closed {day} and open again {dayb}. For anything urgent please call {name}."),
        ("out of office {date} to {dateb}, contact {name}|I am away from {date} to {dateb}, {name} covers|tell {to} I am on vacation from {date} until {dateb} and {name} will help",
         "I will be away from {date} to {dateb}. {name} will help you while I am out.|I am out of the office from {date} until {dateb}. Please contact {name} in the meantime."),
        ("introduce {to} to {name}, who {role}|introduce {name}, who {role}|tell {to} about {name}: {role}", "I would like to introduce {name}, who {role}.|Let me introduce you to {name}, who {role}.|Please meet {name}, who {role}."),
        ("tell {to} {problem}|complain that {problem}|{problem}|let {to} know {problem}|say {problem}", "{problem}.|I am writing because {problem}.|Unfortunately {problem}. Could you look into it?"),
        ("ask for an update on {project}|ask {to} where we are with {project}|any news on {project}?|status of {project}?", "Is there any news on {project}?|Could you give me an update on {project}?|Where are we with {project}?"),
        ("tell {to} I am sick and won't be in {day}|sick, not in {day}|call in sick for {day}|I am ill, out {day}", "I am sick and won't be in {day}.|I am not feeling well and have to stay at home {day}."),
        ("ask for {n} days off from {date}|ask {to} if I can take {n} days off from {date}|request {n} days of vacation starting {date}", "Could I take {n} days off from {date}?|I would like to take {n} days off, starting {date}. Is that all right?|May I take {n} days off from {date}?"),
        ("flight lands in {city} at {time} on {date}|tell {to} my flight to {city} lands at {time} on {date}|arrive {city} {date} {time}|say I arrive in {city} on {date} at {time}",
         "My flight lands in {city} on {date} at {time}.|I will arrive in {city} on {date} at {time}."),
        ("meet in {room} at {time}|tell {to} to meet in {room} at {time}|{room} at {time}|say we meet in {room} at {time}", "We meet in {room} at {time}.|Let's meet in {room} at {time}.|See you in {room} at {time}."),
        ("{name} and {nameb} will join|tell {to} {name} and {nameb} are coming too|say {name} and {nameb} will be there|bringing {name} and {nameb}", "{name} and {nameb} will join us.|{name} and {nameb} are coming too.|I will bring {name} and {nameb} along."),
        ("we need {n} of them by {date}|order {n} by {date}|tell {to} we need {n} pieces by {date}|{n} pieces, delivery {date}", "We need {n} pieces by {date}.|Please send us {n} pieces by {date}.|We would like to order {n} pieces for delivery by {date}."),
        ("ask whether {name} has signed {doc}|ask {to} if {name} signed {doc}|has {name} signed {doc}?|check with {to} whether {name} signed {doc}", "Has {name} signed {doc}?|Could you tell me whether {name} has signed {doc}?|Do you know if {name} has signed {doc}?"),
        ("tell {to} {name} approved {doc}|{name} approved {doc}|say that {name} has approved {doc}", "{name} has approved {doc}.|I am glad to say that {name} has approved {doc}."),
        ("tell {to} I agree with {thing}|agree to {thing}|say I am fine with {thing}", "I agree with {thing}.|I am fine with {thing}.|Yes, I agree to {thing}."),
        ("wish {to} a happy birthday|happy birthday|say happy birthday", "Happy birthday! I hope you have a wonderful day.|I wish you a very happy birthday!"),
        ("wish {to} a good trip to {city}|say have a good trip to {city}|safe travels to {city}", "Have a good trip to {city}!|I wish you a safe trip to {city}."),
        ("yes|say yes|agree|ok|yes please", "Yes.|Yes, that works for me.|Yes, please.|Sure, that is fine with me."),
        ("no|say no|no, sorry|tell {to} no", "No, I am sorry.|I am afraid not.|No, sorry."),
        ("ask {to} for {their} opinion on {doc}|ask what {they} {think} of {doc}", "What do you think of {doc}?|I would like to hear what you think about {doc}.|Could you tell me your opinion on {doc}?"),
        ("the wifi code for {room} is {code}|tell {to} the code for {room} is {code}|code {room}: {code}", "The code for {room} is {code}.|For {room} you need the code {code}."),
        ("recommend {name} for {project}|tell {to} {name} would be good for {project}|suggest {name} for {project}", "I would recommend {name} for {project}.|I think {name} would be a good choice for {project}."),
        ("give {to} feedback on {doc}: good, but page {n} is too long|feedback {doc}: page {n} too long|tell {to} I like {doc}, page {n} is too long", "I like {doc}. Only page {n} is too long.|{doc} is good, but page {n} is too long."),
    )
)  # fmt: skip
