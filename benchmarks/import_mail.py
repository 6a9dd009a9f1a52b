"""Mails per second and peak memory of an import: makes N mails in a temporary folder, imports them, prints one JSON line.

python benchmarks/import_mail.py --mails 100000
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import tempfile
import time
from email.utils import formatdate
from itertools import accumulate
from pathlib import Path

from panza.mail import Store, import_mail

ME = "me@example.org"
VOCABULARY = 20_000
WEIGHTS = list(accumulate(1 / (rank + 3) for rank in range(VOCABULARY)))  # as frequent as words are: Zipf's law
# By rank: a rare and a frequent word, middling words, the most frequent one alone, a long text.
QUERIES = [[15_000, 40], [300, 700, 1500], [0], [0, 1, 2, 3], list(range(0, 8000, 100))]


def word(rank: int) -> str:
    """A word that can be spoken: one syllable for each digit of its rank, in base 20."""
    syllables = ""
    while rank or not syllables:
        rank, digit = divmod(rank, 20)
        syllables += "bdfgklmnprstvwzhcjqx"[digit] + "aeiou"[digit % 5]
    return syllables


WORDS = [word(rank) for rank in range(VOCABULARY)]


def sentence(chance: random.Random) -> str:
    return " ".join(chance.choices(WORDS, cum_weights=WEIGHTS, k=chance.randint(6, 18))).capitalize() + "."


def mail(i: int, chance: random.Random) -> str:
    """A plain mail: wrapped at 72 columns, a closing, every third one with a quoted mail under it."""
    other = f"p{chance.randrange(400)}@example.net"
    sender, to = (ME, other) if i % 2 else (other, ME)
    text = " ".join(sentence(chance) for _ in range(chance.randint(2, 9)))
    lines, line = [], ""
    for word in text.split():
        line, full = (f"{line} {word}".strip(), "") if len(line) + len(word) < 72 else (word, line)
        lines += [full] * bool(full)
    body = "\n".join(["Hi,", "", *lines, line, "", "Best regards,", "Anna", ""])
    if i % 3 == 0:
        body += f"\nOn {formatdate(1.5e9 + i)}, <{to}> wrote:\n" + "".join(f"> {sentence(chance)}\n" for _ in range(6))
    subject = f"{'Re: ' * (i % 2)}{' '.join(chance.choices(WORDS, cum_weights=WEIGHTS, k=4))} {i // 4}"
    return (
        f"From {sender} Mon Jan 22 21:46:00 2001\nMessage-ID: <{i}@example.org>\nDate: {formatdate(1.5e9 + 600 * i)}\n"
        f'From: "Name {sender[0]}" <{sender}>\nTo: <{to}>\nSubject: {subject}\nMIME-Version: 1.0\n'
        f"Content-Type: text/plain; charset=utf-8\n\n{body}\n"
    )


def search_ms(store: Store) -> float:
    """The slowest of the queries, in milliseconds, after one round to warm up."""
    times = []
    for ranks in QUERIES * 2:
        start = time.perf_counter()
        store.search(" ".join(WORDS[rank] for rank in ranks), 8, before=1_600_000_000, not_thread="none")
        times.append(1000 * (time.perf_counter() - start))
    return max(times[len(QUERIES) :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mails", type=int, default=10_000)
    count = parser.parse_args().mails
    with tempfile.TemporaryDirectory() as folder:
        box = Path(folder) / "box.mbox"
        chance = random.Random(0)
        with box.open("w") as file:
            file.writelines(mail(i, chance) for i in range(count))
        with Store(Path(folder) / "mail.db") as store:
            start, cpu = time.perf_counter(), time.process_time()
            report = import_mail(store, [box], [ME])
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
            assert report.added == count, report
            result = {
                "mails": count,
                "mbox_mb": round(os.path.getsize(box) / 1e6, 1),
                "mails_per_second": round(count / seconds),
                "mails_per_cpu_second": round(count / cpu),
                "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
                "search_ms": round(search_ms(store), 1),
            }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
