"""Mailboxes into the store: every mail is accounted for, again adds nothing, and a kill loses nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from panza.mail import Store, import_mail, read
from panza.mail.importing import outcome
from panza.mail.raw import RawMail
from panza.types import UserError

ME = "anna@example.org"
FROM = "From x@example.org Mon Jan 22 21:46:00 2001\n"
ROOT = Path(__file__).resolve().parents[2]


def mail(i: int, sender: str = ME, body: str = "", extra: str = "") -> str:
    return (
        f"Message-ID: <{i}@x>\nDate: Tue, 03 May 2022 10:{i // 60 % 60:02}:{i % 60:02} +0000\nFrom: Anna Lee <{sender}>\n"
        f"To: Ben <ben@example.net>\nSubject: Plan {i}\n{extra}\n{body or f'Words of mail {i}.'}\n"
    )


def write_mbox(path: Path, mails: list[str]) -> Path:
    path.write_text("".join(f"{FROM}{m}\n" for m in mails))
    return path


@pytest.fixture
def store(tmp_path: Path):
    with Store(tmp_path / "store" / "mail.db") as opened:
        yield opened


def contents(store: Store) -> tuple:
    return list(store.messages()), store.dropped(), [list(store.dropped_items(r)) for r in store.dropped()]


def test_every_mail_is_accounted_for(store: Store, tmp_path: Path) -> None:
    box = write_mbox(
        tmp_path / "box.mbox",
        [
            mail(1),
            mail(2, "ben@example.net"),
            mail(1),
            mail(3, body="> only a quote"),
            mail(4, extra="Auto-Submitted: auto-replied\n"),
            mail(5)
            .replace("<5@x>", "<copy-of-1@x>")
            .replace("10:00:05", "10:00:01")
            .replace("Plan 5", "Plan 1")
            .replace("mail 5", "mail 1"),
            "Subject: nobody\n\nText.\n",
            mail(6, "not" + ME),
        ],
    )
    seen: list[tuple[int, int, str]] = []
    report = import_mail(store, [box], [ME], lambda *state: seen.append(state))
    assert (report.seen, report.added, report.sent_by_me, report.known) == (8, 3, 1, 0)
    assert report.dropped == {"automatic reply": 1, "duplicate": 2, "no sender": 1, "only quoted or forwarded text": 1}
    assert report.seen == report.added + report.known + sum(report.dropped.values())
    assert store.dropped() == report.dropped
    assert [m.id for m in store.messages(mine=True)] == ["1@x"]
    assert list(store.dropped_items("automatic reply"))[0][0] == "4@x"
    assert list(store.dropped_items("no sender"))[0][0].startswith(f"{box}@")
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert seen[-1] == (box.stat().st_size, box.stat().st_size, "8 mails")


def test_a_second_import_adds_nothing_and_reports_the_same(store: Store, tmp_path: Path) -> None:
    box = write_mbox(tmp_path / "box.mbox", [mail(1), mail(2, "ben@example.net"), mail(1), mail(3, body="> q")])
    first = import_mail(store, [box], [ME])
    before = contents(store)
    second = import_mail(store, [box], [])
    assert contents(store) == before
    assert (second.seen, second.added, second.known) == (4, 0, first.added)
    assert (second.dropped, second.sent_by_me) == (first.dropped, first.sent_by_me)


def test_a_box_that_grew_adds_what_is_new(store: Store, tmp_path: Path) -> None:
    box = write_mbox(tmp_path / "box.mbox", [mail(i) for i in range(3)])
    import_mail(store, [box], [ME])
    write_mbox(box, [mail(i) for i in range(5)])
    report = import_mail(store, [box], [])
    assert (report.seen, report.added, report.known) == (5, 2, 3)


def test_the_same_mail_from_another_file_is_a_duplicate(store: Store, tmp_path: Path) -> None:
    one = write_mbox(tmp_path / "one.mbox", [mail(1), mail(2)])
    two = write_mbox(tmp_path / "two.mbox", [mail(2), mail(3)])
    report = import_mail(store, [one, two], [ME])
    assert (report.added, report.dropped) == (3, {"duplicate": 1})


def test_another_address_of_the_user_marks_old_mail(store: Store, tmp_path: Path) -> None:
    box = write_mbox(tmp_path / "box.mbox", [mail(1), mail(2, "anna@work.example")])
    assert import_mail(store, [box], [ME]).sent_by_me == 1
    assert import_mail(store, [box], ["Anna@Work.example"]).sent_by_me == 2
    assert store.me == {ME, "anna@work.example"}


def test_without_me_the_error_names_the_senders(store: Store, tmp_path: Path) -> None:
    box = write_mbox(tmp_path / "box.mbox", [mail(1), mail(2), mail(3, "ben@example.net")])
    with pytest.raises(UserError, match=f"{ME}, ben@example.net"):
        import_mail(store, [box], [])
    assert store.count() == 0


def test_a_wrong_me_is_answered_with_who_it_may_be(store: Store, tmp_path: Path) -> None:
    box = write_mbox(tmp_path / "box.mbox", [mail(1), mail(2), mail(3, "ben@example.net")])
    wrong = import_mail(store, [box], ["ana@example.org"])
    assert (wrong.added, wrong.sent_by_me, wrong.candidates) == (3, 0, (ME, "ben@example.net"))
    store.drop_me(["ana@example.org"])
    assert store.me == frozenset()
    right = import_mail(store, [box], [ME])
    assert (right.known, right.sent_by_me, right.candidates) == (3, 2, ())
    received = write_mbox(tmp_path / "received.mbox", [mail(4, "ben@example.net")])
    assert import_mail(store, [received], []).candidates == (), "the store has mail of mine from elsewhere"


def test_paths_that_hold_no_mail_are_a_users_mistake(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("Nothing but notes.\n")
    (tmp_path / "empty.mbox").touch()
    for name in ("missing", "empty", "notes.txt", "empty.mbox"):
        with pytest.raises(UserError, match=name):
            import_mail(store, [tmp_path / name], [ME])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_cannot_be_read_is_counted(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "mails"
    folder.mkdir()
    (folder / "good.eml").write_text(mail(1))
    (folder / "locked.eml").write_text(mail(2))
    (folder / "locked.eml").chmod(0)
    assert import_mail(store, [folder], [ME]).dropped == {"unreadable file": 1}


def test_a_file_that_goes_away_is_counted(tmp_path: Path) -> None:
    result = outcome(RawMail(b"", "gone.eml", error="FileNotFoundError"))
    assert (result.reason, result.item, result.detail) == ("unreadable file", "gone.eml", "FileNotFoundError")


def test_folders_of_any_kind_are_found(store: Store, tmp_path: Path) -> None:
    root = tmp_path / "all"
    for name in ("Maildir/cur", "Maildir/new", "Maildir/tmp", "Maildir/.Sent/cur", "Maildir/.Sent/new", "Maildir/.Trash/cur",
                 "Maildir/.Trash/new", "Local/Inbox.sbd", "eml/2022"):  # fmt: skip
        (root / name).mkdir(parents=True)
    files = {
        "Maildir/cur/1700000001.a:2,S": mail(1),
        "Maildir/new/1700000002.b": mail(2),
        "Maildir/cur/1700000003.c:2,ST": mail(3),
        "Maildir/cur/1700000004.d:2,D": mail(4),
        "Maildir/tmp/1700000005.e": mail(5),
        "Maildir/.Sent/cur/1700000006.f:2,": mail(6),
        "Maildir/.Trash/cur/1700000007.g:2,S": mail(7),
        "Local/Inbox": f"{FROM}{mail(8)}",
        "Local/Inbox.msf": "// an index\n",
        "Local/Inbox.sbd/Friends": f"{FROM}{mail(9)}",
        "Local/Junk": f"{FROM}{mail(10)}",
        "eml/2022/a.eml": mail(11),
        "eml/2022/b.EML": mail(12),
        "eml/2022/13.": mail(13),
        "eml/notes.txt": "no mail",
    }
    for name, text in files.items():
        (root / name).write_text(text)
    report = import_mail(store, [root], [ME])
    assert {m.id for m in store.messages()} == {f"{i}@x" for i in (1, 2, 6, 8, 9, 11, 12, 13)}
    assert report.dropped == {"draft": 1, "spam": 1, "trash": 2}


def test_a_junk_file_that_the_user_names_is_read(store: Store, tmp_path: Path) -> None:
    assert import_mail(store, [write_mbox(tmp_path / "Junk.mbox", [mail(1)])], [ME]).added == 1


def test_a_flag_set_in_a_maildir_makes_no_second_mail(store: Store, tmp_path: Path) -> None:
    for name in ("cur", "new"):
        (tmp_path / "box" / name).mkdir(parents=True)
    unread = tmp_path / "box" / "new" / "17.a"
    unread.write_text(mail(1))
    import_mail(store, [tmp_path / "box"], [ME])
    unread.rename(tmp_path / "box" / "cur" / "17.a:2,S")
    report = import_mail(store, [tmp_path / "box"], [])
    assert (report.added, report.known, report.dropped) == (0, 1, {})


def test_read_gives_each_mail_with_its_place(tmp_path: Path) -> None:
    box = write_mbox(tmp_path / "box.mbox", [mail(1), mail(2)])
    first, second = read(box)
    assert first.source == f"{box}@0"
    assert box.read_bytes()[int(second.source.rpartition("@")[2]) :].startswith(FROM.encode() + b"Message-ID: <2@x>")


SENTINEL = "xyzzy-sentinel"
TRAPS = [
    b"From: " + SENTINEL.encode() + b" <a@b>\nDate: " + SENTINEL.encode() + b"\n\n" + SENTINEL.encode(),
    b"From: a@b\nContent-Type: multipart/mixed; boundary=\n\n" + SENTINEL.encode(),
    b"From: a@b\nContent-Type: text/plain; charset*=utf-8'" + SENTINEL.encode() + b"\n\n\xff" + SENTINEL.encode(),
    b"From: a@b\nContent-Transfer-Encoding: base64\n\n" + SENTINEL.encode(),
    b"\xff\xfe" * 50 + SENTINEL.encode(),
    b"",
]


@pytest.mark.parametrize("data", TRAPS)
def test_no_mail_text_in_what_is_said_of_a_mail(data: bytes, store: Store, tmp_path: Path, caplog, capfd) -> None:
    (tmp_path / "x.eml").write_bytes(data + b"\n\n" + b"> " + SENTINEL.encode())
    try:
        import_mail(store, [tmp_path / "x.eml"], [ME])
    except UserError as error:
        assert SENTINEL not in str(error)
    said = [str(item) for reason in store.dropped() for item in (reason, *store.dropped_items(reason))]
    assert SENTINEL not in " ".join(said) + caplog.text + "".join(capfd.readouterr())


def test_a_mail_that_breaks_the_parser_is_counted_and_named(store: Store, tmp_path: Path, monkeypatch) -> None:
    box = write_mbox(tmp_path / "box.mbox", [mail(1), mail(2, body=SENTINEL), mail(3)])
    from panza.mail import importing

    def clean(text: str, author: str):
        if SENTINEL in text:
            raise ValueError(text)
        return original(text, author)

    original = importing.clean
    monkeypatch.setattr(importing, "clean", clean)
    report = import_mail(store, [box], [ME])
    assert (report.added, report.dropped) == (2, {"malformed": 1})
    [(item, detail)] = store.dropped_items("malformed")
    assert item.startswith(f"{box}@")
    assert detail == "ValueError"


def test_a_kill_in_the_middle_and_a_second_run_give_the_same_store(tmp_path: Path) -> None:
    box = write_mbox(
        tmp_path / "box.mbox", [mail(i % 5000, body=f"> quote {i}" if i % 9 == 0 else "") for i in range(6000)]
    )
    whole, killed = tmp_path / "whole.db", tmp_path / "killed.db"
    with Store(whole) as store:
        import_mail(store, [box], [ME])
        want = contents(store)
    code = (
        "import sys; from pathlib import Path; from panza.mail import Store, import_mail\n"
        "say = lambda done, total, note='': (print(note, flush=True), sys.stdin.readline())\n"
        "import_mail(Store(Path(sys.argv[1])), [Path(sys.argv[2])], [sys.argv[3]], say)"
    )
    command = [sys.executable, "-c", code, str(killed), str(box), ME]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin and child.stdout
        assert child.stdout.readline() == "1,000 mails\n"
        child.stdin.write("\n")  # on with the second batch, and killed somewhere in it or after it
        child.stdin.flush()
        child.send_signal(signal.SIGKILL)
    with Store(killed) as store:
        stored = store.count()
        assert 888 <= stored < len(want[0])
        report = import_mail(store, [box], [])
        assert (report.known, report.added) == (stored, len(want[0]) - stored)
        assert contents(store) == want


SAMPLES = ROOT.parent / "shared" / "mail_samples"


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the parsers' sample mails are not beside the repository")
def test_nothing_breaks_on_other_parsers_samples() -> None:
    files = [f for f in SAMPLES.rglob("*") if f.is_file()]
    reasons = [getattr(outcome(RawMail(f.read_bytes(), f.name)), "reason", "") for f in files]
    assert len(files) > 600
    assert reasons.count("malformed") == 0
    assert reasons.count("") > 150
