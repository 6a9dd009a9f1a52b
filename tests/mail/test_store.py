"""The store: what goes in comes out, for several threads and processes; search is safe with any text."""

from __future__ import annotations

import sqlite3
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from panza.mail.store import Entry, Seen, Store
from panza.types import Address, Message, UserError

ANNA, BEN = Address("Anna Lee", "anna@example.org"), Address("Ben Ott", "ben@example.net")


def message(
    id: str, body: str = "Hello.", date: int = 100, sender: Address = BEN, subject: str = "Plan", **more
) -> Message:
    to = (BEN,) if sender is ANNA else (ANNA,)
    return Message(id, date, sender, to, (), subject, body, source=f"box@{id}", **more)


def put(store: Store, *messages: Message, gmail: str = "") -> int:
    entries = [Entry(m, gmail, m.id.encode(), b"f") for m in messages]
    added, _ = store.write(entries, [])
    store.group()
    return added


@pytest.fixture
def store(tmp_path: Path):
    with Store(tmp_path / "mail.db") as opened:
        yield opened


def test_a_mail_comes_out_as_it_went_in(store: Store) -> None:
    m = message("a@x", "Grüße, 世界 \n\n- one", quoted="before", in_reply_to="p@x", references=("o@x", "p@x"))
    put(store, m)
    back = store.get("a@x")
    assert back == store.get("<a@x>")
    assert (back.thread, back.mine) == ("a@x", False)
    assert {f: getattr(back, f) for f in m.__slots__ if f not in ("thread", "mine")} == {
        f: getattr(m, f) for f in m.__slots__ if f not in ("thread", "mine")
    }
    with pytest.raises(KeyError):
        store.get("nobody@x")


def test_files_are_private(tmp_path: Path) -> None:
    with Store(tmp_path / "mail.db") as store:
        put(store, message("a"))
        assert {stat.S_IMODE(f.stat().st_mode) for f in tmp_path.iterdir()} == {0o600}


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system does not list open files in /proc")
def test_the_files_of_threads_that_ended_do_not_pile_up(store: Store) -> None:
    put(store, message("a"))
    before = len(list(Path("/proc/self/fd").iterdir()))
    counts: list[int] = []
    for _ in range(60):
        thread = threading.Thread(target=lambda: counts.append(store.count()))
        thread.start()
        thread.join()
    assert counts == [1] * 60
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 4  # the connections of two threads


def test_a_mail_read_in_a_thread_that_ended_is_still_read(store: Store) -> None:
    put(store, message("a"), message("b", "Two.", 200))
    kept: list = []
    thread = threading.Thread(target=lambda: kept.append(store.messages()))
    thread.start()
    thread.join()
    assert [m.id for m in kept[0]] == ["a", "b"]


def test_nothing_is_spilled_into_temporary_files(store: Store) -> None:
    assert store._db.execute("PRAGMA temp_store").fetchone() == (2,)


def test_a_file_that_is_no_store_is_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database, but long enough to look like one " * 100)
    with pytest.raises(UserError, match="text.db"):
        Store(tmp_path / "text.db")
    newer = sqlite3.connect(tmp_path / "newer.db")
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(UserError, match="99"):
        Store(tmp_path / "newer.db")


def test_order_and_choice_of_messages(store: Store) -> None:
    store.add_me(["anna@example.org"])
    put(store, message("b", date=2), message("a", "Mine.", 1, ANNA), message("c", "Mine too.", 3, ANNA))
    assert [m.id for m in store.messages()] == ["a", "b", "c"]
    assert [m.id for m in store.messages(newest_first=True, limit=2)] == ["c", "b"]
    assert [m.id for m in store.messages(mine=True)] == ["a", "c"]
    assert [m.id for m in store.messages(mine=False)] == ["b"]
    assert (store.count(), store.count(mine=True), store.count(mine=False)) == (3, 2, 1)


def test_rows_go_on_after_a_row(store: Store) -> None:
    put(store, message("a"), message("b", date=5))
    rows = list(store.rows())
    assert [m.id for _, m in rows] == ["a", "b"]
    put(store, message("c", date=1))
    later = list(store.rows(after=rows[-1][0]))
    assert [m.id for _, m in later] == ["c"]
    wanted = [later[0][0], rows[0][0], 999]
    assert [m.id for m in store.by_rows(wanted)] == ["c", "a"]


def test_me_is_matched_as_a_whole_address(store: Store) -> None:
    put(store, message("a", sender=Address("", "notme@x.org")), message("b", sender=Address("", "me@x.org")))
    store.add_me(["ME@x.org "])
    assert store.me == {"me@x.org"}
    assert [m.id for m in store.messages(mine=True)] == ["b"]
    store.add_me(["notme@x.org"])
    assert store.count(mine=True) == 2
    for wrong in ("me", "me@", "a@b@c", "", "me@x.org, you@x.org"):
        with pytest.raises(UserError, match="address"):
            store.add_me([wrong])


def test_a_wrong_address_of_mine_can_be_taken_back(store: Store) -> None:
    store.add_me(["anna@example.org", "ben@example.net"])
    put(store, message("a", "Mine.", 1, ANNA), message("b", date=2, subject="Re: Plan"))
    assert store.count(mine=True) == 2
    store.drop_me([" Ben@example.net"])
    assert store.me == {"anna@example.org"}
    assert [m.id for m in store.messages(mine=True)] == ["a"]
    assert store.get("b").thread == "a", "Ben is a person of the thread again"
    put(store, message("c", "Later.", 3))
    assert not store.get("c").mine
    with pytest.raises(UserError, match="ben@example.net.*anna@example.org"):
        store.drop_me(["anna@example.org", "ben@example.net"])
    assert store.me == {"anna@example.org"}


def test_the_name_of_an_address_is_the_one_seen_most(store: Store) -> None:
    assert store.name_of("ben@example.net") == ""
    put(
        store,
        message("a", sender=Address("Benjamin Ott", "ben@example.net")),
        message("b", sender=Address("", BEN.email)),
    )
    put(store, message("c", date=3), message("d", date=4))
    assert store.name_of("BEN@example.net") == "Ben Ott"
    assert store.name_of("anna@example.org") == "", "she wrote nothing, and no mail to her is the user's"
    store.add_me(["ben@example.net"])
    assert store.name_of("anna@example.org") == "Anna Lee"
    assert store.name_of("na@example.org") == store.name_of("%") == store.name_of("") == ""


def test_a_store_without_the_index_of_senders_gets_it(tmp_path: Path) -> None:
    with Store(tmp_path / "mail.db") as store:
        store._db.execute("DROP INDEX message_sender")
    with Store(tmp_path / "mail.db") as store:
        plan = store._db.execute("EXPLAIN QUERY PLAN SELECT sender_name FROM message WHERE sender = 'a'").fetchall()
        assert "message_sender" in plan[0][-1]


def test_my_name_is_the_one_used_most(store: Store) -> None:
    assert store.my_name == ""
    store.add_me(["anna@example.org", "a.lee@work.example"])
    assert store.my_name in ("Anna", "A Lee")
    put(store, message("a", sender=Address("A. Lee", "a.lee@work.example")))
    put(store, *(message(f"m{i}", f"Text {i}", sender=ANNA) for i in range(3)), message("z", sender=BEN))
    assert store.my_name == "Anna Lee"


def test_a_copy_is_a_duplicate_and_the_same_place_is_not(store: Store) -> None:
    entry = Entry(message("a"), "", b"digest", b"f")
    copy = Entry(Message("b", 100, BEN, (), (), "Plan", "Hello.", source="other@7"), "", b"digest", b"g")
    assert store.write([entry, copy], []) == (1, [Seen("other@7", b"g", "duplicate", "b", "same as box@a")])
    assert store.write([entry], []) == (0, [])
    assert store.dropped() == {"duplicate": 1}
    assert list(store.dropped_items("duplicate")) == [("b", "same as box@a")]
    assert list(store.dropped_items("spam")) == []


def test_a_batch_that_fails_leaves_nothing(store: Store) -> None:
    broken = Seen("box@9", b"f", None, "x", "")  # type: ignore[arg-type]
    with pytest.raises(sqlite3.IntegrityError):
        store.write([Entry(message("a"), "", b"d", b"f")], [broken])
    assert store.count() == 0
    assert store.search("hello", 5) == []


def test_threads_ignore_the_user_as_a_shared_person(store: Store) -> None:
    store.add_me(["anna@example.org"])
    carl = Address("Carl", "carl@example.org")
    put(
        store,
        message("a", "To Ben.", 1, ANNA, "Lunch"),
        message("b", "From Ben.", 2, BEN, "Re: Lunch"),
        message("c", "From Carl.", 3, carl, "Re: Lunch"),
    )
    assert [m.id for m in store.thread("a").messages] == ["a", "b"]
    assert store.get("c").thread == "c"
    with pytest.raises(KeyError):
        store.thread("nothing")


def test_an_older_mail_that_comes_later_takes_its_place_in_the_thread(store: Store) -> None:
    put(store, message("b", date=2, references=("a",)), message("c", "More.", 3, references=("a", "b")))
    assert store.get("c").thread == "b"
    put(store, message("a", "First.", 1))
    assert [m.id for m in store.thread("a").messages] == ["a", "b", "c"]


def test_gmails_thread_id_joins(store: Store) -> None:
    put(store, message("a", "One.", 1, subject="x"), message("b", "Two.", 2, subject="y"), gmail="17")
    assert store.get("b").thread == "a"


def found(store: Store, query: str, **more) -> list[str]:
    return [m.id for m in store.by_rows(store.search(query, 10, **more))]


def test_search_ranks_all_words_before_some(store: Store) -> None:
    put(
        store,
        message("both", "The budget for Vienna is ready.", 1, subject="x"),
        message("one", "Vienna is cold. " * 3, 2, subject="y"),
        message("none", "Nothing here.", 3, subject="z"),
        message("name", "Short.", 4, Address("Vera Vienna", "v@example.org"), subject="w"),
    )
    assert found(store, "What is the budget for Vienna?")[0] == "both"
    assert set(found(store, "what is the budget for Vienna?")) == {"both", "one", "name"}
    assert found(store, "Budget") == ["both"]
    assert found(store, "the of and") == []


def test_search_folds_accents_and_small_letters(store: Store) -> None:
    put(store, message("a", "Schöne Grüße aus Köln, CAFÉ und naïve."))
    for query in ("grusse koln", "KÖLN", "café", "cafe", "Naïve"):
        assert found(store, query.replace("grusse", "grüße")) == ["a"], query


def test_search_can_leave_out_later_mails_and_a_thread(store: Store) -> None:
    put(store, *(message(f"m{i:02}", f"Budget number {i}.", i, subject=f"s{i}") for i in range(40)))
    assert set(found(store, "budget", before=3)) == {"m00", "m01", "m02"}
    assert "m01" not in found(store, "budget", before=3, not_thread="m01")
    assert len(store.search("budget", 10)) == 10


@pytest.mark.parametrize("order", ["by date", "newest first", "mixed"])
def test_a_frequent_word_is_ranked_among_the_newest_mails(store: Store, monkeypatch, order: str) -> None:
    monkeypatch.setattr("panza.mail.store.MAX_MATCHES", 5)
    mails = [message(f"m{i:02}", f"Budget number {i}.", i, subject=f"s{i}") for i in range(60)]
    put(store, *{"by date": mails, "newest first": mails[::-1], "mixed": mails[::2] + mails[1::2]}[order])
    got = [int(m.id[1:]) for m in store.by_rows(store.search("budget", 3, before=30))]
    assert len(got) == 3
    assert max(got) < 30
    if order == "by date":
        assert min(got) >= 24
    assert len(store.search("budget", 60)) == 60


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(max_size=60),
    operator=st.sampled_from(["", '"', "NEAR(", " AND ", " OR ", "*", "^", "body:", "-", "'"]),
)
def test_search_takes_any_text(store: Store, text: str, operator: str) -> None:
    if not store.count():
        put(store, message("a", "Budget."))
    rowids = store.search(f"{text}{operator}{text} budget", 3)
    assert [m.id for m in store.by_rows(rowids)] == ["a"]


def test_the_text_of_a_removed_mail_is_not_found(store: Store) -> None:
    put(store, message("a", "Secret budget."), message("b", "Open budget.", 5))
    with store.writing() as db:
        db.execute("DELETE FROM message WHERE id = 'a'")
    assert found(store, "budget") == ["b"]
    assert found(store, "secret") == []
    assert store._db.execute("INSERT INTO words (words, rank) VALUES ('integrity-check', 1)")


def test_several_threads_read_and_write(store: Store) -> None:
    errors: list[Exception] = []

    def work(n: int) -> None:
        try:
            for i in range(20):
                store.write([Entry(message(f"{n}-{i}", f"Text {n} {i}"), "", f"{n}-{i}".encode(), b"f")], [])
                assert store.get(f"{n}-{i}").body == f"Text {n} {i}"
                assert len(list(store.messages(limit=5))) <= 5
        except Exception as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert errors == []
    assert store.count() == 80
