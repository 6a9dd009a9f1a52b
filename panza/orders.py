"""One sentence of a mail as what its author would ask for: "Can you come on Friday?" -> "ask Anna to come on Friday".

Persons are shifted (I stays, "you" becomes they, he or she), questions are turned round, and each kind of sentence has
several forms of order. Knows English sentences; knows no mail.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Pick = Callable[[Sequence[str]], str]  # chooses one of several forms


def first(forms: Sequence[str]) -> str:
    return forms[0]


@dataclass(frozen=True, slots=True)
class Reader:
    """Who the mail goes to, as an order speaks of them. `name` may be empty; `they` is "they", "he" or "she"."""

    name: str = ""
    they: str = "they"

    @property
    def them(self) -> str:
        return _CASES[self.they][0]

    @property
    def their(self) -> str:
        return _CASES[self.they][1]


_CASES = {
    "they": ("them", "their", "theirs", "themselves"),
    "he": ("him", "his", "his", "himself"),
    "she": ("her", "her", "hers", "herself"),
}


def order(sentence: str, reader: Reader, pick: Pick = first, again: bool = False) -> str:
    """The order for one sentence, in small letters at its start; "" if nothing is left of it.

    again: an earlier order has named the reader, who is now a pronoun.
    """
    asks = sentence.rstrip("\"') ").endswith("?")
    text = _bare(sentence, reader.name)
    for pattern, make, forms in _TURNS:
        if (found := pattern.match(text + "?" * asks)) and (x := make(found, reader)):
            return _formed(_fitting(forms, found, reader, again), x.strip(" ,:;-"), reader, pick, again)
    return ""


def _fitting(forms: Sequence[str], found: re.Match[str], reader: Reader, again: bool) -> list[str]:
    """The forms for a named reader, or those that name nobody."""
    forms = [f.format(**{k: v or "" for k, v in found.groupdict().items() if k != "x"}, x="{x}", to="{to}", they="{they}")
             for f in forms]  # fmt: skip
    unnamed = [f for f in forms if "{to}" not in f]
    return unnamed if unnamed and (again or not reader.name) and "{to}" not in forms[-1] else forms


def _formed(forms: Sequence[str], x: str, reader: Reader, pick: Pick, again: bool) -> str:
    to = reader.name if reader.name and not again else reader.them
    text = pick(forms).format(x=x, to=to, they=reader.they)
    return re.sub(r"\s+([,.])", r"\1", " ".join(text.split())).strip(" ,:;-")


_LEAD = re.compile(
    r"^(?:(?:and|but|so|also|however|therefore|then|plus|btw|by the way|oh|well|now|first|second|third|finally|lastly|if so|"
    r"in addition|additionally|meanwhile|otherwise|again|anyway|anyways|actually|basically|hopefully|besides|next|fyi|hey|hi|"
    r"in the meantime|as you (?:may )?know|as (?:we )?discussed|p\.?s\.?|yo|alright|all right|man|dude)\b[,:]?\s+|ps:\s*)+",
    re.IGNORECASE,
)
_SOFT = re.compile(
    r"\b(?:i (?:just )?(?:wanted|want|would like|'d like) to (?:let you know(?: that)?|say(?: that)?|tell you(?: that)?)|"
    r"i am writing to|just to let you know(?: that)?|this is to (?:let you know|inform you|advise you)(?: that)?|"
    r"i (?:think|believe|guess|assume|suppose)\b(?: that\b)?|it (?:looks|seems|appears) (?:like|that)|"
    r"please (?:note|be advised|be aware|understand)(?: that)?|if (?:at all )?possible|"
    r"at your (?:earliest )?convenience|(?:at|for) (?:the|this) (?:moment|time))\s*[,:]?\s*",
    re.IGNORECASE,
)


def _bare(sentence: str, name: str) -> str:
    """Without brackets, connectives, softeners, a "please" or "thanks" at the end, and the reader's name in front."""
    text = re.sub(r"\s*\([^()]*\)", "", sentence.replace("’", "'")).strip(" \t.!,;:-–—\"'*?")
    text = re.sub(r",? (?:please|pls|thanks|thank you|thx)$", "", text, flags=re.IGNORECASE)
    if name:
        text = re.sub(rf"^{re.escape(name)}\s*[,:;–-]+\s*", "", text, flags=re.IGNORECASE)
    return _SOFT.sub("", _LEAD.sub("", text, count=1)).strip(" ,;:-")


# --- persons --------------------------------------------------------------------------------------------------------

_AUX = (
    "am is are was were do does did have has had will would can could should shall may might must isn't aren't wasn't weren't "
    "don't doesn't didn't haven't hasn't hadn't won't wouldn't can't couldn't shouldn't"
).split()
_THIRD = {"are": "is", "were": "was", "have": "has", "do": "does", "don't": "doesn't", "haven't": "hasn't",
          "aren't": "isn't", "weren't": "wasn't"}  # fmt: skip
_ADVERBS = frozenset("just also really still never always already probably ever not only actually both all".split())
_BEFORE_SUBJECT = frozenset(
    "if that when what where how why because but before after as unless until while since which who so think hope whether though "
    "although do did are were have will would can could should whatever once and anything everything something time day way".split()
)
_BEFORE_OBJECT = frozenset(
    "let give send thank to for with of from by about on see tell ask help call show get pay bring owe meet miss love catch contact "
    "reach forward fax email mail like than between without at".split()
)
_VERBS = frozenset(
    "need want know think see get got like said sent gave told asked wanted mentioned requested left made put went took found look feel "
    "wish prefer plan hope decide work call come go say seem agree believe understand remember".split()
)
_YOU = re.compile(
    r"\b(you(?:'(?:re|ve|ll|d))?|your|yours|yourself|yourselves)\b(?: (?:guys|all|both)\b)?", re.IGNORECASE
)


def reported(text: str, reader: Reader) -> str:
    """`text` with its "you" in the third person: "if you want your copy" -> "if they want their copy"."""
    out, at = [], 0
    for m in _YOU.finditer(text):
        out.append(text[at : m.start()])
        at = m.end()
        word = m[1].lower().replace("’", "'")
        if word == "you":
            before = re.findall(r"[\w']+|[^\w\s]", text[: m.start()])[-1:]
            after = re.match(r"\s+([\w']+)", text[m.end() :])
            if _is_subject(before[0].lower() if before else "", after[1].lower() if after else ""):
                new, at = _conjugated(text, at, after, reader)
                out.append(reader.they + new)
            else:
                out.append(reader.them)
        else:
            out.append(_other_you(word, reader))
    return "".join(out) + text[at:]


def _other_you(word: str, reader: Reader) -> str:
    them, their, theirs, themselves = _CASES[reader.they]
    ends = {"you're": "'re", "you've": "'ve", "you'll": "'ll", "you'd": "'d"}
    if word in ends:
        end = ends[word]
        return reader.they + ("'s" if reader.they != "they" and end in ("'re", "'ve") else end)
    return {"your": their, "yours": theirs}.get(word, themselves)


def _is_subject(before: str, after: str) -> bool:
    if after in _AUX:
        return True
    if before in _BEFORE_OBJECT:
        return False
    if after in _VERBS or (after.endswith("ed") and before not in _IRREGULAR):
        return True
    return before in _BEFORE_SUBJECT or not re.match(r"\w", before)


def _conjugated(text: str, at: int, after: re.Match[str] | None, reader: Reader) -> tuple[str, int]:
    """What follows the pronoun as far as it changes with it: "you need" -> " needs" after he or she."""
    if reader.they == "they" or not after:
        return "", at
    word = after[1].lower()
    if word in _ADVERBS or (word in _AUX and word not in _THIRD) or not word.isalpha() and word not in _THIRD:
        return "", at
    if (word.endswith(("ed", "ing")) and word not in ("need", "bring", "feed")) or word in _PAST.values():
        return "", at
    return " " + third(word), at + after.end()


def third(verb: str) -> str:
    """have -> has, try -> tries, go -> goes."""
    if verb in _THIRD:
        return _THIRD[verb]
    if re.search(r"[^aeiou]y$", verb):
        return verb[:-1] + "ies"
    return verb + ("es" if re.search(r"(?:s|x|z|ch|sh|[^o]o)$", verb) else "s")


_PAST: dict[str, str] = dict(
    pair.split(":")
    for pair in (
        "be:was become:became begin:began bring:brought build:built buy:bought call:called catch:caught choose:chose come:came cut:cut "
        "do:did draw:drew drink:drank drive:drove eat:ate fall:fell feel:felt find:found fly:flew forget:forgot get:got give:gave go:went "
        "have:had hear:heard hold:held keep:kept know:knew leave:left let:let lose:lost make:made mean:meant meet:met pay:paid put:put "
        "read:read run:ran say:said see:saw sell:sold send:sent set:set show:showed sign:signed sit:sat sleep:slept speak:spoke "
        "spend:spent take:took talk:talked tell:told think:thought understand:understood wear:wore win:won write:wrote plan:planned "
        "stop:stopped ship:shipped drop:dropped submit:submitted"
    ).split()
)
_IRREGULAR = frozenset((*_PAST, *_PAST.values()))


def past(verb: str) -> str:
    """get -> got, try -> tried, ask -> asked."""
    if verb in _PAST:
        return _PAST[verb]
    if re.search(r"[^aeiou]y$", verb):
        return verb[:-1] + "ied"
    return verb + ("d" if verb.endswith("e") else "ed")


# --- questions ------------------------------------------------------------------------------------------------------

_PRONOUN = r"i|we|you(?: (?:guys|all|both))?|he|she|it|they|this|that|there|anyone|anybody|everyone|everybody|someone|somebody|" \
           r"either of you|any of you|all of you"  # fmt: skip
_DETERMINED = r"(?:the|your|my|our|his|her|their|this|that|these|those|any|all|both|some|a|an)(?: [\w'&/-]+){1,4}?"
_NAME = r"(?-i:[A-Z][\w'-]+(?: [A-Z][\w'-]+)?)"
_CUE = (
    r"(?=(?:still|already|now|not|on|in|at|for|to|going|able|there|here|due|open|ok|okay|ready|available|free|possible|correct|right|"
    r"good|fine|done|set|coming|from|with|by|a|an|the|under|out|up|off|back|too|being|been|gone|sent|go|get|come|look|work|need|have|"
    r"want|know|include|mean|make|apply|change|seem|still|all|so|as|more|over|"
    r"paid|made|given|taken|written|sold|bought|held|kept|left|lost|seen|told|known|found|broken|\w{3,}ing|\w{3,}ed)\b)"
)
_INVERTED = re.compile(
    rf"(?P<aux>{'|'.join(sorted(_AUX, key=len, reverse=True))}) (?:(?P<who>(?:{_PRONOUN}))(?: (?P<rest>.+))?|(?:(?P<name>{_NAME}) |(?P<np>{_DETERMINED}) {_CUE})(?P<more>.+))$",
    re.IGNORECASE | re.DOTALL,
)
_WH = re.compile(
    r"(?P<wh>(?:about |to |for |from |at |in |with )?(?:who|what|when|where|why|how|which|whose|whom)"
    r"(?: (?:much|many|long|soon|often|far|late|early|big|bad|about|time|date|day|kind of|type of|[a-z]{3,12})){0,3}?) "
    rf"(?P<question>(?:{'|'.join(_AUX)}) .+)$",
    re.IGNORECASE | re.DOTALL,
)
_SHORT_BE = re.compile(rf"(?P<aux>is|are|was|were) (?P<np>{_DETERMINED.replace('{1,4}?', '{1,4}')})$", re.IGNORECASE)


def turned(question: str, reader: Reader) -> str:
    """A yes-no question as a clause: "Did you get it" -> "they got it"; "" if its subject cannot be told."""
    m = _INVERTED.match(question)
    if not m:
        return ""
    who, rest = m["who"] or m["name"] or m["np"], (m["rest"] if m["who"] else m["more"]) or ""
    aux = m["aux"].lower()
    you = m["who"] is not None and who.lower().startswith("you")
    subject = (
        reader.they
        if you
        else "I"
        if who.lower() == "i"
        else who
        if m["name"]
        else reported(who.lower() if m["who"] else who, reader)
    )
    single = (you and reader.they != "they") or who.lower() in ("he", "she", "it", "this", "that")
    if aux in ("do", "does", "did"):
        verb, _, tail = rest.partition(" ")
        lead = ""
        while verb.lower() in _ADVERBS and tail:
            lead, (verb, _, tail) = f"{lead}{verb} ", tail.partition(" ")
        if not verb.isalpha():
            return ""
        new = past(verb.lower()) if aux == "did" else third(verb.lower()) if aux == "does" or single else verb.lower()
        return f"{subject} {lead}{new} {reported(tail, reader)}".strip()
    if you and reader.they != "they":
        aux = _THIRD.get(aux, aux)
    return f"{subject} {aux} {reported(rest, reader)}".strip()


def _wh(m: re.Match[str], reader: Reader) -> str:
    """ "When are you leaving" -> "when they are leaving"; one that asks for its own subject stays."""
    text = m["x"]
    if found := _WH.match(text):
        wh = found["wh"].lower()
        if clause := turned(found["question"], reader):
            return f"{reported(wh, reader)} {clause}"
        if short := _SHORT_BE.match(found["question"]):
            return f"{wh} {reported(short['np'], reader)} {short['aux'].lower()}"
    return _decapitalized(reported(text, reader))


# --- what is said of a sentence ----------------------------------------------------------------------------------------


def _decapitalized(text: str) -> str:
    """Without the capital that only the sentence's start gave; names and "I" keep theirs."""
    word = re.match(r"[\w']+", text)
    if word and word[0].lower() in _LOWERED:
        return text[:1].lower() + text[1:]
    return text


_LOWERED = frozenset(
    (
        "a about after again all also an and another any are as at attached be because before below both but by can could did do does "
        "don't due during each either enclosed even every everyone everything first for from had has have he her here his how however "
        "if in is it it's its just last let let's like look make many maybe more most my need next no nobody none not nothing of ok "
        "okay on once one only our out over per please see several she should since so some someone something sorry still such sure "
        "thank thanks that that's the their then there there's these they this those to today tomorrow tonight too two until us very "
        "was we we'll we're we've were what when where which while who why will with would yes yesterday yet you your get got give go "
        "going send call take tell talk meet check bring come keep put use find ask sounds hope happy great good nice"
    ).split()
)  # fmt: skip


def _shifted(m: re.Match[str], reader: Reader) -> str:
    return _decapitalized(reported(m["x"].strip(" .?!"), reader))


def _verb(m: re.Match[str], reader: Reader) -> str:
    """A verb phrase, its first word small."""
    x = reported(re.sub(r"^(?:please|kindly|also|just) ", "", m["x"].strip(" .?!"), flags=re.IGNORECASE), reader)
    return x[:1].lower() + x[1:] if x[1:2].islower() or len(x) == 1 else x


def _turned(m: re.Match[str], reader: Reader) -> str:
    return turned(m["x"].strip(" .?!"), reader)


def _asked(m: re.Match[str], reader: Reader) -> str:
    found = re.match(r"(?P<x>.+)$", m["x"].strip(" .?!"), re.DOTALL)
    return _wh(found, reader) if found else ""


_IMPERATIVE = (
    "keep|call|send|use|check|give|forward|make|take|get|see|look|bring|print|sign|review|contact|ask|tell|add|put|come|try|"
    "fax|email|e-mail|mail|set|schedule|go|find|respond|reply|advise|confirm|fill|fix|change|update|talk|stop|"
    "drop|pick|cancel|book|order|buy|pay|invite|arrange|prepare|provide|include|submit|copy|attach|move|remove|delete|read|let|leave|"
    "pass|ship|return|save|write|run|work|wait|feel free to|be sure to|feel|bear|join|consider|disregard|ignore|plan|enter|verify|coordinate"
)
_CANNOT = r"(?:can't|cannot|can not|won't be able to|will not be able to|am not able to|'m not able to|am unable to|are unable to)"

_REQUEST = ("ask {to} to {x}", "ask {to} if {they} can {x}", "ask if {they} can {x}", "see if {they} could {x}", "ask {to} to please {x}",
            "request that {they} {x}", "get {to} to {x}", "need {to} to {x}", "tell {to} to {x}")  # fmt: skip
_PROPOSE = ("suggest that we {x}", "suggest we {x}", "propose that we {x}", "suggest to {to} that we {x}")
_TELL = ("tell {to} {x}", "tell {to} that {x}", "let {to} know that {x}", "inform {to} that {x}", "say {x}", "say that {x}", "mention that {x}",
         "explain that {x}", "{x}", "let {to} know {x}", "write that {x}")  # fmt: skip
_WHETHER = ("ask {to} if {x}", "ask if {x}", "ask whether {x}", "ask {to} whether {x}", "find out if {x}", "check with {to} if {x}",
            "want to know if {x}")  # fmt: skip
_ASK = ("ask {to} {x}", "ask {x}", "find out {x}", "want to know {x}", "ask {to} to say {x}")

Make = Callable[[re.Match[str], Reader], str]
# (pattern on the sentence, how its part x changes, the forms). The first match with an x wins; the product says the
# first form that fits.
_TURNS: tuple[tuple[re.Pattern[str], Make, tuple[str, ...]], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), make, forms)
    for pattern, make, forms in (
        # thanks, apologies, wishes
        (
            r"(?:many |much |ok(?:ay)?,? )?(?:thanks|thank you|thx)(?: (?:so|very) much| a lot| a million)?(?: again)?,?(?: for| to) (?P<x>.+)$",
            _shifted,
            (
                "thank {to} for {x}",
                "say thanks for {x}",
                "thanks for {x}",
                "express thanks for {x}",
                "thank {to} warmly for {x}",
            ),
        ),
        (
            r"(?P<x>thanks|thank you|thx|many thanks)\b.{0,16}$",
            lambda m, r: "thanks",
            ("thank {to}", "say {x}", "say thank you"),
        ),
        (
            r"(?:i|we) (?:really |do |would )?appreciate (?P<x>(?!it if).+)$",
            _shifted,
            ("thank {to} for {x}", "say I appreciate {x}", "thanks for {x}"),
        ),
        (
            r"(?:i(?:'m| am) |we(?:'re| are) )?(?:so |very |really )?(?:sorry|apologies|(?:my|i|we) apologi[sz]e?s?)(?: for| about) (?P<x>.+)$",
            _shifted,
            (
                "apologise for {x}",
                "apologize for {x}",
                "say sorry for {x}",
                "sorry for {x}",
                "apologize to {to} for {x}",
            ),
        ),
        (
            r"(?:i(?:'m| am) |we(?:'re| are) )?(?:so |very |really )?(?:sorry|(?:i|we) apologi[sz]e)(?:,| but)? (?P<x>(?:that |i |we |you |it |to ).+)$",
            lambda m, r: re.sub(r"^that ", "", _shifted(m, r)),
            ("apologise that {x}", "say sorry that {x}", "apologize that {x}", "sorry {x}"),
        ),
        (
            r"(?:congratulations|congrats)(?: again)?(?: to you)?,? (?:on|for) (?P<x>.+)$",
            _shifted,
            ("congratulate {to} on {x}", "congratulations on {x}", "say congrats on {x}"),
        ),
        (
            r"(?P<x>(?:happy|merry) .+)$",
            lambda m, r: m["x"][:1].lower() + m["x"][1:],
            ("wish {to} a {x}", "say {x}", "wish a {x}"),
        ),
        (
            r"have an? (?P<x>(?:great|good|nice|wonderful|safe|happy|fun|blast|lovely).*)$",
            _shifted,
            ("wish {to} a {x}", "say have a {x}"),
        ),
        (
            r"(?P<x>good luck.*)$",
            lambda m, r: reported(m["x"][:1].lower() + m["x"][1:], r),
            ("wish {to} {x}", "say {x}"),
        ),
        # requests
        (
            r"(?:please )?(?:do not|don't) forget to (?P<x>.+)$|(?:please )?(?:remember|be sure|make sure) to (?P<y>.+)$",
            lambda m, r: reported(m["x"] or m["y"], r),
            ("remind {to} to {x}", "ask {to} to remember to {x}", "tell {to} not to forget to {x}"),
        ),
        (
            r"(?:this is )?(?:just )?an? (?:quick |friendly |gentle )?reminder (?:that|to|of|about) (?P<x>.+)$",
            _shifted,
            ("remind {to} that {x}", "send a reminder that {x}"),
        ),
        (
            r"(?:please |just )?let me know (?P<x>(?:if|whether|when|what|how|who|where|which|why|the|your|about|of|by)\b.+)$",
            _shifted,
            ("ask {to} to let me know {x}", "ask {to} to tell me {x}", "ask {to} {x}"),
        ),
        (
            r"(?:please |just )?(?P<x>let me know\b.*)$",
            lambda m, r: "let me know",
            ("ask {to} to {x}", "ask for a reply"),
        ),
        (r"please (?P<x>advise|confirm)$", _verb, ("ask {to} to {x}",)),
        (
            r"(?:please |pls |kindly )?(?:do not|don't) (?P<x>(?!hesitate|worry|know|think|have|want|need|see|get).+)$",
            _verb,
            ("ask {to} not to {x}", "tell {to} not to {x}"),
        ),
        (
            r"(?:i was |was |just )?wondering (?P<x>(?:if|whether|what|when|how|where|who|why)\b.+)$|i(?:'d| would)? (?:like|want|need) to know (?P<y>.+)$",
            lambda m, r: reported(m["x"] or m["y"], r),
            ("ask {to} {x}", "ask {x}", "find out {x}"),
        ),
        (
            r"(?:i|we)(?:'d| would| 'd)? (?:really )?appreciate it if you (?:could|would|can) (?P<x>.+)$|i(?:'d| would)? (?:need|want|like) you to (?P<y>.+)$",
            lambda m, r: reported(m["x"] or m["y"], r),
            _REQUEST,
        ),
        (
            r"(?:would you|do you|will you|wanna|do you guys) (?:like|want|care|wanna) to (?P<x>.+)\?$",
            _verb,
            (
                "ask {to} if {they} would like to {x}",
                "invite {to} to {x}",
                "ask if {they} would like to {x}",
                "see if {to} wants to {x}",
            ),
        ),
        (
            r"(?:would|do) you mind (?P<x>\w+ing .+)$",
            _shifted,
            ("ask {to} if {they} would mind {x}", "ask if {they} would mind {x}"),
        ),
        (
            r"(?:can|could|would|will) you (?:please |kindly |also |all |guys |possibly )*(?P<x>(?!be (?:able|here|there|in)\b).+)$",
            _verb,
            _REQUEST,
        ),
        (r"(?:please|pls|kindly) (?P<x>.+)$", _verb, _REQUEST[:1] + _REQUEST[4:]),
        # proposals
        (r"(?:let's|let us|lets|why don't we|shall we) (?P<x>.+?)\??$", _verb, _PROPOSE),
        (
            r"(?:how|what) about (?P<x>.+)\?$",
            _shifted,
            ("suggest {x}", "propose {x}", "ask about {x}", "ask {to} about {x}"),
        ),
        # questions
        (rf"(?P<x>(?:{'|'.join(_AUX)}) .+)\?$", _turned, _WHETHER),
        (
            r"(?P<x>(?:(?:about|to|for|from|at|in|with) )?(?:who|what|when|where|why|how|which|whose)\b.+)\?$",
            _asked,
            _ASK,
        ),
        (r"any (?P<x>.+)\?$", _shifted, ("ask about any {x}", "ask {to} if there is any {x}", "ask about {x}")),
        (r"(?P<x>.+)\?$", _shifted, ("ask: {x}", "ask {to}: {x}", "ask {x}")),
        # answers
        (
            rf"(?:no,? |unfortunately,? |sorry,? (?:but )?|i'm afraid (?:that )?)*(?:i|we) (?:{_CANNOT}) (?P<x>.+)$",
            _shifted,
            (
                "say I can't {x}",
                "tell {to} I can't {x}",
                "decline, can't {x}",
                "politely decline, I can't {x}",
                "let {to} know I can't {x}",
                "say no, I can't {x}",
                "decline politely: can't {x}",
            ),
        ),
        (
            r"(?:i|we)(?:'d| would) (?:love|be happy|be glad|be delighted|like) to (?P<x>.+)$",
            _verb,
            ("say I would love to {x}", "accept, would love to {x}", "tell {to} I'd be happy to {x}", "agree to {x}"),
        ),
        (
            r"(?:yes|yeah|yep|sure|ok|okay|no problem|absolutely|definitely|of course|sounds (?:good|great|fine))[,.! –-]+(?P<x>.+)$",
            _shifted,
            ("agree, {x}", "say yes, {x}", "confirm, {x}", "yes, {x}"),
        ),
        (
            r"(?P<x>yes|sure|ok|okay|sounds (?:good|great|fine)|no problem|absolutely|will do|works for me|that works(?: for me)?|fine with me|i agree)$",
            lambda m, r: _decapitalized(m["x"]),
            ("agree", "say {x}", "agree, {x}", "reply {x}"),
        ),
        (r"(?:no|nope)[,. –-]+(?P<x>.+)$", _shifted, ("say no, {x}", "no, {x}", "answer no, {x}")),
        (
            r"(?:i (?:just )?(?:want|wanted|would like) to |just |this is to |i can )?confirm(?:ing|s)? (?:that )?(?P<x>.+)$",
            _shifted,
            ("confirm that {x}", "confirm {x}", "confirm to {to} that {x}"),
        ),
        # sendings and offers
        (
            r"(?:attached|enclosed|here|below|following) (?:is|are|please find|you will find|you'll find|for your \w+ (?:is|are)) (?P<x>.+)$",
            _shifted,
            ("send {x}", "send {to} {x}", "attach {x}", "send along {x}", "forward {x}"),
        ),
        (
            r"(?:please find |i have |i've |i am |i'm |we have |we've )(?:attached|attaching|enclosed|enclosing)(?: herewith)? (?P<x>.+)$",
            _shifted,
            ("send {x}", "attach {x}", "send {to} {x}"),
        ),
        (
            r"(?:i|we)(?: can| could|'ll| will|'d be happy to| would be happy to| am happy to|'m happy to) (?P<x>.+?),? if (?:you(?:'d)? (?:like|want|need|wish)|that (?:helps|would help)).*$",
            _verb,
            ("offer to {x}", "offer {to} to {x}", "say I can {x} if {they} want"),
        ),
        (
            r"(?:i|we) will (?P<x>.+)$|(?:i|we)'ll (?P<y>.+)$",
            lambda m, r: reported(m["x"] or m["y"], r),
            (
                "say I will {x}",
                "tell {to} I will {x}",
                "tell {to} I'll {x}",
                "let {to} know I'll {x}",
                "promise to {x}",
                "say I'll {x}",
                "will {x}",
                "I'll {x}",
            ),
        ),
        (
            r"you (?:should|need to|must|have to|may want to|might want to|can) (?P<x>(?!know |be ).+)$",
            _verb,
            ("tell {to} to {x}", "advise {to} to {x}", "tell {to} {they} can {x}"),
        ),
        (rf"(?P<x>(?:{_IMPERATIVE})\b (?!is\b|was\b|has\b|are\b).+)$", _verb, _REQUEST[:1] + _REQUEST[4:]),
        (r"(?P<x>.+)$", _shifted, _TELL),
    )
)
