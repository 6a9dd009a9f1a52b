"""Bytes to text, whatever the mail says they are. Knows names of character sets; knows no MIME."""

from __future__ import annotations

from charset_normalizer import from_bytes

# Names that mail uses and Python does not know, or knows as a smaller set than senders mean.
_ALIASES = {
    "iso-8859-1": "cp1252", "latin1": "cp1252", "latin-1": "cp1252", "iso8859-1": "cp1252", "iso_8859-1": "cp1252",
    "iso-8859-8-i": "iso-8859-8", "iso-8859-8-e": "iso-8859-8", "iso-8859-6-i": "iso-8859-6",
    "ks_c_5601-1987": "cp949", "ks_c_5601": "cp949", "euc-kr": "cp949", "gb2312": "gb18030", "gbk": "gb18030",
    "x-gbk": "gb18030", "shift_jis": "cp932", "shift-jis": "cp932", "x-sjis": "cp932", "big5": "big5hkscs",
    "x-big5": "big5hkscs", "x-mac-roman": "mac-roman", "macintosh": "mac-roman", "x-user-defined": "cp1252",
    "windows-874": "cp874", "tis-620": "cp874", "unicode-1-1-utf-7": "utf-7", "utf8": "utf-8", "utf-8": "utf-8",
    "cp-850": "cp850", "ansi_x3.4-1968": "ascii", "us-ascii": "ascii", "iso-8859-9": "cp1254",
}  # fmt: skip
# Sets in which any byte is a letter, so that decoding proves nothing: valid UTF-8 is believed before them.
_SINGLE_BYTE = ("cp125", "iso-8859", "iso8859", "mac-", "cp85", "ascii", "koi8")
_GUESSES = [
    "cp1252",
    "cp1250",
    "cp1251",
    "koi8_r",
    "cp1253",
    "cp1254",
    "shift_jis",
    "euc_jp",
    "gb18030",
    "big5",
    "cp949",
]


def decode(data: bytes, declared: str) -> str:
    """`data` as text; never fails. Order: the declared set, UTF-8, a guess by letter statistics, Windows-1252."""
    if data.isascii() and not declared.lower().startswith(("iso-2022", "utf-7", "hz", "unicode-1-1")):
        return data.decode("ascii")
    codec = codec_of(declared)
    candidates = [codec, "utf-8"] if codec and not codec.startswith(_SINGLE_BYTE) else ["utf-8", codec]
    for name in filter(None, candidates):
        try:
            return data.decode(name)
        except (UnicodeDecodeError, LookupError, ValueError):
            continue
    return _closest(data, codec)


def codec_of(declared: str) -> str:
    """Python's codec for a declared name, or nothing if there is none (or it is no character set)."""
    name = declared.strip().strip("\"'").lower()
    name = _ALIASES.get(name, name)
    try:
        b"".decode(name)  # refuses what is no character set: "base64", "rot13"
    except (LookupError, ValueError):
        return ""
    return name


def _closest(data: bytes, codec: str) -> str:
    """When no decoding is exact: mostly right UTF-8 or declared text keeps its few bad bytes as U+FFFD."""
    for name in filter(None, (codec, "utf-8")):
        if name != "ascii":
            text = data.decode(name, "replace")
            if text.count("\ufffd") * 20 <= len(text):
                return text
    guess = from_bytes(data[:4096], cp_isolation=_GUESSES).best()
    return data.decode(guess.encoding if guess else "cp1252", "replace")
