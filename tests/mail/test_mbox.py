"""The mbox splitter: what was joined comes apart again, whatever the line ends and however the file arrives."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panza.mail import mbox

FROM = b"From anna@example.org Mon Jan 22 21:46:00 2001\n"
FROM_LINES = [
    FROM,
    b"From - Mon Jan 22 21:46:00 2001\n",
    b"From 1716@xxx Mon Jan 22 21:46:00 +0000 2001\n",
    b"From anna@example.org Mon Jan 22 21:46 2001\n",
    b"From anna@example.org Mon Jan  2 21:46:00 CET 2001\n",
    b"From anna@example.org  Mon Jan 22 21:46:00 2001 +0100\n",
    b"From anna@example.org Mon Jan 22 21:46:00 2001 remote from host\n",
    b'From "anna lee"@example.org Mon Jan 22 21:46:00 2001\n',
    b"From anna@example.org Mon, 22 Jan 2001 21:46:00 +0100\n",
]
NO_FROM_LINES = [
    b"From here on it is easy.\n",
    b"From what I saw in 2001\n",
    b"From Monday, 22 January 2001 we are away\n",
    b"From: anna@example.org\n",
    b"from anna@example.org Mon Jan 22 21:46:00 2001\n",
    b" From anna@example.org Mon Jan 22 21:46:00 2001\n",
    b"From Anna: the plan of 2001\n",
]


class Trickle(io.RawIOBase):
    """A file that gives at most `step` bytes at a time."""

    def __init__(self, data: bytes, step: int) -> None:
        self._data, self._step = io.BytesIO(data), step

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:
        piece = self._data.read(min(self._step, len(buffer)))
        buffer[: len(piece)] = piece
        return len(piece)


def split(data: bytes, step: int = 1 << 16) -> list[bytes]:
    return [mail for _, mail in mbox.split(io.BufferedReader(Trickle(data, step), max(step, 1)))]


def join(mails: list[bytes], end: bytes = b"\n", last_newline: bool = True) -> bytes:
    """An mbox of `mails` as mail programs write it: `>` before `From `, an empty line after each mail."""
    quoted = [re.sub(rb"^(>*From )", rb">\1", mail, flags=re.MULTILINE) for mail in mails]
    data = b"".join(FROM + mail + b"\n" for mail in quoted).replace(b"\n", end)
    return data if last_newline else data.removesuffix(end)


LINES = st.one_of(
    st.sampled_from(
        [*FROM_LINES, *NO_FROM_LINES, b">" + FROM, b">>From me\n", b"\n", b"\n", b"--x\n", b"\xef\xbb\xbf\n"]
    ),
    st.binary(max_size=40).map(lambda b: b.replace(b"\r", b"").replace(b"\n", b"") + b"\n"),
)
MAILS = st.lists(
    st.lists(LINES, max_size=8).map(lambda lines: b"Subject: x\n\n" + b"".join(lines)), min_size=1, max_size=5
)


@settings(deadline=None)
@given(MAILS, st.sampled_from([b"\n", b"\r\n"]), st.integers(1, 70))
def test_what_was_joined_comes_apart(mails: list[bytes], end: bytes, step: int) -> None:
    assert split(join(mails, end), step) == [mail.replace(b"\n", end) for mail in mails]


@settings(deadline=None)
@given(MAILS, st.integers(1, 70))
def test_the_last_newline_may_be_missing(mails: list[bytes], step: int) -> None:
    got = split(join(mails, last_newline=False), step)
    assert [mail.rstrip(b"\n") for mail in got] == [mail.rstrip(b"\n") for mail in mails]


@settings(deadline=None)
@given(MAILS)
def test_offsets_point_at_the_from_lines(mails: list[bytes]) -> None:
    data = join(mails)
    offsets = [offset for offset, _ in mbox.split(io.BytesIO(data))]
    assert len(offsets) == len(mails)
    assert all(data[offset:].startswith(FROM) for offset in offsets)


@settings(deadline=None)
@given(st.binary(max_size=400), st.integers(1, 50))
def test_any_bytes_give_the_same_mails_at_any_chunk_size(data: bytes, step: int) -> None:
    assert split(data, step) == split(data)


@pytest.mark.parametrize("line", FROM_LINES)
def test_a_from_line_after_an_empty_line_begins_a_mail(line: bytes) -> None:
    assert split(FROM + b"Subject: a\n\none\n\n" + line + b"Subject: b\n\ntwo\n") == [
        b"Subject: a\n\none\n",
        b"Subject: b\n\ntwo\n",
    ]


@pytest.mark.parametrize("line", NO_FROM_LINES)
def test_a_line_that_only_looks_like_one_does_not(line: bytes) -> None:
    mail = b"Subject: a\n\none\n\n" + line + b"two\n"
    assert split(FROM + mail) == [mail]


def test_a_from_line_without_an_empty_line_before_it_is_text() -> None:
    mail = b"Subject: a\n\none\n" + FROM + b"two\n"
    assert split(FROM + mail) == [mail]


def test_exactly_one_mark_is_taken_off() -> None:
    assert split(FROM + b"\n>From a\n>>From b\n> From c\n>>>From d\n") == [b"\nFrom a\n>From b\n> From c\n>>From d\n"]


def test_a_byte_order_mark_and_empty_lines_before_the_first_mail() -> None:
    assert split(b"\xef\xbb\xbf" + FROM + b"Subject: a\n\none\n") == [b"Subject: a\n\none\n"]
    assert split(b"\n\n" + FROM + b"Subject: a\n\none\n") == [b"Subject: a\n\none\n"]


def test_a_long_line_is_read_in_pieces_and_hides_no_mail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mbox, "LINE", 64)
    long = b"x" * 64 + b"\n" + FROM + b"y" * 100 + b"\n"
    assert split(FROM + long + b"\n" + FROM + b"Subject: b\n") == [long, b"Subject: b\n"]


def test_of_a_huge_mail_only_the_beginning_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mbox, "MAX_MAIL", 100)
    huge, small = split(FROM + b"0123456789\n" * 1000 + b"\n" + FROM + b"Subject: b\n")
    assert 100 <= len(huge) <= 111
    assert small == b"Subject: b\n"
