"""The whole way on a tiny model, as a user types it, with every socket blocked: import, playback, train, draft, eval.

The verbs run in this process, so that torch is imported once and not a dozen times; some also in a process of their own.
"""

from __future__ import annotations

import io
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from panza import cli
from tests.conftest import ME, a_mailbox
from tests.sealed import SITECUSTOMIZE, sealed

ROOT = Path(__file__).resolve().parent.parent
METRICS = {"bleu", "rouge_l", "chrf", "greeting", "sign_off", "length_ratio", "facts_kept"}
Done = subprocess.CompletedProcess[str]


class Panza:
    """`panza VERB ...` in one home, without a network. `log` is there once a socket was tried."""

    def __init__(self, folder: Path) -> None:
        self.home, self.log, block = folder / "home", folder / "sockets.txt", folder / "block"
        block.mkdir()
        (block / "sitecustomize.py").write_text(SITECUSTOMIZE)
        self.places = {"PANZA_HOME": str(self.home), "TMPDIR": str(folder)}
        self.env = {**os.environ, **self.places, "PYTHONPATH": f"{block}:{ROOT}", "SEALED_LOG": str(self.log)}

    def __call__(self, *words: object) -> Done:
        """In this process, from the entry point on."""
        out, err, umask = io.StringIO(), io.StringIO(), os.umask(0o022)
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr(sys, "argv", ["panza", *map(str, words)])
            patch.setattr(tempfile, "tempdir", None)  # so that it looks at TMPDIR again
            for name, value in self.places.items():
                patch.setenv(name, value)
            try:
                cli.main()
                status = 0
            except SystemExit as end:
                status = int(end.code or 0)
            finally:
                os.umask(umask)
        return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())

    def alone(self, *words: object) -> Done:
        """In a process of its own."""
        command = [sys.executable, "-m", "panza.cli", *map(str, words)]
        return subprocess.run(command, env=self.env, capture_output=True, text=True)

    def json(self, *words: object, run: Callable[..., Done] | None = None) -> dict:
        """What the verb prints with --json. run: how; in this process if it is not given."""
        done = (run or self)(*words, "--json")
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.strip().splitlines()) == 1, "exactly one JSON object"
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def panza(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Panza]:
    """Whatever the tests of this module did with it, no socket was opened."""
    opened = Panza(tmp_path_factory.mktemp("path"))
    with sealed(opened.log):
        yield opened
    assert not opened.log.exists(), opened.log.read_text()


@pytest.fixture(scope="module")
def trained(panza: Panza, mailbox: Path, tiny_base: Path) -> Panza:
    """A home after import, playback and training, each checked on the way."""
    imported = panza.json("import", mailbox, "--me", ME)
    assert {"seen": 80, "added": 80, "sent_by_me": 40, "dropped": {}}.items() <= imported.items()
    assert panza.json("import", mailbox)["added"] == 0
    played = panza.json("playback", "--base", tiny_base, "--tries", 1)
    assert {"pairs", "rejected", "seconds"} <= played.keys() and played["pairs"] == 40
    report = panza.json("train", "--method", "lora", "--epochs", 2, "--lr", 0.003)
    assert {"adapter", "pairs", "heldout", "loss_before", "loss_after", "seconds"} <= report.keys()
    assert (report["pairs"], report["validation"], report["heldout"]) == (28, 4, 8)
    assert report["loss_after"] < report["loss_before"]
    return panza


CALLS = {
    "connection": lambda: socket.create_connection(("192.0.2.1", 80)),
    "connect": lambda: socket.socket().connect(("192.0.2.1", 80)),
    "connect_ex": lambda: socket.socket().connect_ex(("192.0.2.1", 80)),
    "datagram": lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53)),
    "name": lambda: socket.getaddrinfo("example.org", 80),
    "url": lambda: urllib.request.urlopen("http://192.0.2.1/"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_socket_is_refused_and_written_down_even_in_a_thread(tmp_path: Path, call: Callable[[], object]) -> None:
    errors = []

    def swallow() -> None:
        try:
            call()
        except AssertionError as error:
            errors.append(str(error))

    with sealed(tmp_path / "log"):
        thread = threading.Thread(target=swallow)
        thread.start()
        thread.join()
    assert "a socket was opened" in errors[0]
    assert (tmp_path / "log").read_text().startswith("socket.")


def test_a_socket_is_refused_in_a_process_of_its_own(tmp_path: Path) -> None:
    panza = Panza(tmp_path)
    code = "import socket; socket.create_connection(('192.0.2.1', 80))"
    done = subprocess.run([sys.executable, "-c", code], env=panza.env, capture_output=True, text=True)
    assert done.returncode == 1 and "a socket was opened" in done.stderr
    assert panza.log.read_text().startswith("socket.")


def test_a_draft_names_its_sources_and_they_exist(trained: Panza) -> None:
    draft = trained.json(
        "draft", "tell Anna the budget works on Monday", "--to", "Anna Lee <anna.lee@example.com>", "--seed", 1
    )
    assert draft.keys() == {"text", "subject", "sources", "tokens", "seconds", "first_token_seconds"}
    assert draft["tokens"] > 0 and draft["seconds"] >= draft["first_token_seconds"] > 0
    assert draft["sources"] and all(s.endswith(("example.com", "example.org")) for s in draft["sources"])


def test_another_process_drafts_the_same_words_with_the_same_seed(trained: Panza) -> None:
    words = ("draft", "tell Anna the budget works on Monday", "--to", "Anna Lee <anna.lee@example.com>", "--seed", 1)
    draft, alone = trained.json(*words), trained.json(*words, run=trained.alone)
    assert draft["text"] and (alone["text"], alone["sources"]) == (draft["text"], draft["sources"])


def test_a_reply_takes_the_thread_and_its_subject(trained: Panza) -> None:
    mail = trained.json("inbox", "--limit", 1)["mails"][0]
    reply = trained.json("draft", "it works", "--reply-to", mail["id"])
    assert reply["subject"] == f"Re: {mail['subject']}"
    assert mail["id"] not in reply["sources"]


def test_evaluation_compares_four_systems(trained: Panza) -> None:
    report = trained.json("eval")
    assert report["n"] == 8
    assert report["systems"].keys() == {"base", "adapter", "floor_random", "floor_nearest"}
    for name, system in report["systems"].items():
        assert system.keys() >= METRICS | ({"perplexity"} if name in ("base", "adapter") else set())
        assert all(v["low"] <= v["value"] <= v["high"] for v in system.values() if v["value"] is not None)
    assert report["systems"]["adapter"]["perplexity"]["value"] < report["systems"]["base"]["perplexity"]["value"]


def test_evaluation_still_works_after_more_mail_came(trained: Panza, tmp_path: Path) -> None:
    """Older mail would shift the split; the report names what training kept aside, and that alone is used."""
    box = a_mailbox(tmp_path / "more.mbox", sent=12, seed=5, ids="more-", first_year=2022)
    assert trained.json("import", box)["sent_by_me"] == 12
    assert trained.json("playback", "--tries", 0)["pairs"] == 52
    report = trained.json("eval", "--limit", 3)
    assert (report["n"], report["kept_aside"], report["no_longer_usable"]) == (3, 8, 0)


def test_everything_is_the_users_alone_to_read(trained: Panza) -> None:
    paths = [trained.home, *trained.home.rglob("*")]
    assert len(paths) > 6
    for path in paths:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), f"{path} is {mode:o}"


def test_nothing_is_written_outside_the_home(trained: Panza) -> None:
    beside = {p.name for p in trained.home.parent.iterdir()}
    assert beside == {"home", "block"}, beside


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["import", "/no/such/file"], "/no/such/file"),
        (["train", "--method", "magic"], "'magic' is no training method"),
        (["draft", "  "], "The instruction is empty"),
        (["draft", "yes", "--reply-to", "nobody@nowhere"], "nobody@nowhere"),
        (["draft", "yes", "--length", "epic"], "'epic' is no length"),
        (["draft", "yes", "--base", "/no/such/model"], "/no/such/model"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_1(trained: Panza, words: list[str], sentence: str) -> None:
    settings = (trained.home / "settings.json").read_bytes()
    done = trained(*words)
    assert (done.returncode, done.stdout) == (1, "")
    assert sentence in done.stderr and "Traceback" not in done.stderr
    assert (trained.home / "settings.json").read_bytes() == settings


def test_exit_statuses_of_a_process_of_its_own(panza: Panza) -> None:
    done = panza.alone("train", "--method", "magic")
    assert (done.returncode, done.stdout) == (1, "") and "'magic' is no training method" in done.stderr
    assert panza.alone("draft").returncode == 2
    assert panza.alone("status").returncode == 0


def test_wrong_usage_is_exit_2(panza: Panza) -> None:
    assert panza("draft").returncode == 2
    assert panza("no-such-verb").returncode == 2


def test_an_empty_home_says_what_to_do_first(tmp_path: Path) -> None:
    empty = Panza(tmp_path)
    for words in (["playback"], ["train"], ["eval"]):
        done = empty(*words)
        assert done.returncode == 1 and "panza" in done.stderr, done.stderr
