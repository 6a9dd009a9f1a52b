"""Mail in: sources, MIME, the author's words, threads, the store.

A new source is one module with `accepts(path)`, `size(path)` and `read(path) -> Iterator[RawMail]`, and one line in
`SOURCES`. The way of a mail: `read` (bytes) -> `mime.parse` -> `sieve.verdict` -> `clean.clean` -> `Store`.
"""

from __future__ import annotations

from panza.mail.importing import ImportReport, import_mail
from panza.mail.raw import RawMail
from panza.mail.sources import SOURCES, read
from panza.mail.store import Store

__all__ = ["SOURCES", "ImportReport", "RawMail", "Store", "import_mail", "read"]
