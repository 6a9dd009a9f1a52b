"""The sample mailbox: well-formed, threaded, big enough to train on, and free of real people and companies."""

from __future__ import annotations

import json
import mailbox
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from panza.mail import Store, import_mail

SAMPLE = Path(__file__).parent.parent / "data" / "sample" / "mail.mbox"
ME = ("neil.haverkamp@larkmoor.example", "nhaverk@quicknet.example")

ADDRESS = re.compile(r"[\w.'+-]+@([\w-]+(?:\.[\w-]+)+)")
LINK = re.compile(r"(?:https?://|\bwww\.)([\w.-]*\w)", re.IGNORECASE)
REAL_DOMAIN = re.compile(r"\b[\w-]+\.(?:com|net|org|edu|gov|us)\b", re.IGNORECASE)
PHONE = re.compile(r"(?:\(?\b\d{3}\)?[-./ ]{1,2})?(?<![\d.])(\d{3})[-. ](\d{4})\b(?! psi)")
EXTENSION = re.compile(r"(?<!\w)[xX@](\d{5})\b")  # the last five digits of an office number: 5-01xx
SEPARATOR = re.compile(r"^From \S+ (\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4})$", re.MULTILINE)
QUOTE = re.compile(r"-----Original Message-----.*", re.DOTALL)

# The companies, pipelines and projects that stood in the source, and its author's surname.
FORBIDDEN = """aquila arclight benelli blackberry calpine chevron cinergy citibank copper.eagle devon duke dynegy ect
el.paso elpaso enbridge enron ensr ets exelon gomez hotmail hyatt intergen juno kern kinder kindermorgan mojave msn nissan
oneok ormat painewebber panda pinnacle.west platts questar red.rock reliant salt.river sempra shell socal sonoran sun.devil
sundevil teco toyota tradefair transwestern tw ubs utilicorp williams yahoo""".split()


@pytest.fixture(scope="module")
def text() -> str:
    return SAMPLE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def mails() -> list[Message]:
    box = mailbox.mbox(SAMPLE, create=False)
    try:
        return list(box)
    finally:
        box.close()


def test_about_two_hundred_sent_and_received(mails: list[Message]) -> None:
    sent = sum(any(address in mail["From"] for address in ME) for mail in mails)
    assert 190 <= sent <= 215
    assert 190 <= len(mails) - sent <= 215
    assert SAMPLE.stat().st_size < 1_500_000


def test_the_named_author_sent_them(mails: list[Message]) -> None:
    author = json.loads((SAMPLE.parent / "author.json").read_text(encoding="utf-8"))
    assert author["addresses"] == list(ME)


def test_every_separator_has_an_asctime_date(text: str, mails: list[Message]) -> None:
    starts = [line for line in text.splitlines() if line.startswith("From ")]
    dates = SEPARATOR.findall(text)
    assert len(starts) == len(dates) == len(mails)
    for date, mail in zip(dates, mails, strict=True):
        assert datetime.strptime(date, "%a %b %d %H:%M:%S %Y") == _utc(mail)


def test_headers_are_complete(mails: list[Message]) -> None:
    assert len({mail["Message-ID"] for mail in mails}) == len(mails)
    for mail in mails:
        assert not mail.defects
        assert mail["From"] and mail["To"] and mail["Subject"] is not None, mail["Message-ID"]
        assert mail["MIME-Version"] == "1.0" and mail.get_content_charset() == "utf-8"


def test_answers_point_to_an_earlier_mail_of_the_box(mails: list[Message]) -> None:
    date = {mail["Message-ID"]: _utc(mail) for mail in mails}
    answers = [mail for mail in mails if mail["In-Reply-To"]]
    assert len(answers) >= 100
    for mail in answers:
        references = mail["References"].split()
        assert references[-1] == mail["In-Reply-To"]
        assert all(date[reference] < _utc(mail) for reference in references), mail["Message-ID"]


def test_every_address_and_link_is_invented(text: str) -> None:
    found = [m.group(1) for pattern in (ADDRESS, LINK) for m in pattern.finditer(text)]
    assert len(found) > 1000
    assert [domain for domain in found if not domain.endswith(".example")] == []
    assert REAL_DOMAIN.findall(text) == []


def test_every_phone_number_is_from_the_fictional_range(text: str) -> None:
    numbers = PHONE.findall("\n".join(_bodies(text)))
    assert len(numbers) > 150
    assert [n for n in numbers if not (n[0] == "555" and n[1].startswith("01"))] == []
    extensions = EXTENSION.findall(text)
    assert len(extensions) > 20
    assert [e for e in extensions if not e.startswith("501")] == []


@pytest.mark.parametrize("word", FORBIDDEN)
def test_no_real_company_is_left(text: str, word: str) -> None:
    assert re.search(rf"(?<![a-z]){word}(?![a-z])", text, re.IGNORECASE) is None


def test_quotes_are_short(mails: list[Message]) -> None:
    quotes = [QUOTE.search(mail.get_payload(decode=True).decode()) for mail in mails]
    lengths = [len(quote.group().splitlines()) for quote in quotes if quote]
    assert len(lengths) > 150 and max(lengths) <= 60


def test_import_finds_the_words_the_author_wrote(tmp_path: Path) -> None:
    with Store(tmp_path / "mail.db") as store:
        report = import_mail(store, [SAMPLE], ME)
        mine = [m for m in store.messages() if m.mine]
    assert report.seen == report.added + sum(report.dropped.values())
    assert 195 <= report.sent_by_me == len(mine)
    words = [len(m.body.split()) for m in mine]
    assert min(words) >= 1
    assert sum(5 <= n <= 200 for n in words) >= 0.9 * len(mine)
    assert [m.id for m in mine if "Original Message" in m.body or "\nSubject:" in m.body] == []


def _utc(mail: Message) -> datetime:
    return parsedate_to_datetime(mail["Date"]).astimezone(UTC).replace(tzinfo=None)


def _bodies(text: str) -> Iterator[str]:
    for part in SEPARATOR.split(text)[2::2]:
        yield part.partition("\n\n")[2]
