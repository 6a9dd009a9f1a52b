"""The report of an evaluation: values by hand, intervals, floors, and what it refuses."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from panza.evaluate import SystemOutput, evaluate, nearest_floor, random_floor, table
from panza.metrics import METRICS
from panza.types import Address, Message, PlaybackPair, UserError

WORDS = "report review budget flight dinner contract Anna Thursday invoice office".split()


def pair(i: int, body: str = "", thread: str = "") -> PlaybackPair:
    word = WORDS[i % len(WORDS)]
    body = body or f"Hi Anna,\n\nthe {word} number {i} is ready.\n\nThanks,\nKevin"
    me = Address("Kevin", "kevin@example.org")
    message = Message(f"m{i}@x", 1000 + i, me, (), (), "", body, thread=thread or f"t{i}", mine=True)
    return PlaybackPair(message, f"say that the {word} {i} is ready", "model")


HELD, TRAINING = [pair(i) for i in range(12)], [pair(i) for i in range(20, 50)]


def embed(texts):
    """A bag of the known words: real vectors, no model."""
    counts = np.array([[text.lower().count(w.lower()) + 0.01 for w in WORDS] for text in texts], np.float32)
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def echo(pairs):
    return SystemOutput([p.message.body for p in pairs], [2.0 * math.log(3)] * len(pairs), [2] * len(pairs))


def mute(pairs):
    return SystemOutput(["" for _ in pairs], [10.0 + i for i in range(len(pairs))], [5] * len(pairs))


def report(**options):
    return evaluate(HELD, TRAINING, {"base": mute, "adapter": echo}, embed, samples=200, **options)


def test_the_report_has_the_agreed_shape():
    found = report()
    assert found["n"] == 12
    assert list(found["systems"]) == ["base", "adapter", "floor_random", "floor_nearest"]
    for name, measured in found["systems"].items():
        assert set(measured) == set(METRICS) | ({"perplexity"} if not name.startswith("floor") else set())
        assert all(set(entry) == {"value", "low", "high"} for entry in measured.values())
    assert set(found["differences"]) == {
        "adapter_minus_base",
        "adapter_minus_floor_random",
        "adapter_minus_floor_nearest",
    }
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_values_by_hand():
    systems = report()["systems"]
    assert systems["adapter"]["perplexity"]["value"] == pytest.approx(3)
    assert systems["base"]["perplexity"]["value"] == pytest.approx(
        math.exp(sum(10 + i for i in range(12)) / 60), abs=1e-3
    )
    assert [systems["adapter"][m]["value"] for m in ("bleu", "chrf", "rouge_l")] == pytest.approx([100, 100, 1])
    assert systems["base"]["chrf"]["value"] == systems["base"]["sign_off"]["value"] == 0
    assert systems["floor_random"]["sign_off"]["value"] == 1  # everyone here closes with the same words


def test_differences_are_paired():
    """Two systems that err on the same mails differ by nothing, however wide each of their intervals is."""
    mixed = [p.message.body if i % 2 else "no" for i, p in enumerate(HELD)]
    found = evaluate(HELD, TRAINING, {s: lambda pairs: SystemOutput(mixed) for s in "ab"}, embed, samples=200)
    assert found["systems"]["a"]["rouge_l"]["high"] - found["systems"]["a"]["rouge_l"]["low"] > 0.2
    assert found["differences"]["b_minus_a"]["rouge_l"] == {"value": 0, "low": 0, "high": 0}


def test_intervals_hold_the_value_and_repeat_with_the_seed():
    first, again, other = report(seed=1), report(seed=1), report(seed=2)
    assert first == again
    assert first["systems"]["base"]["perplexity"] != other["systems"]["base"]["perplexity"]
    entry = first["systems"]["base"]["perplexity"]
    assert entry["low"] < entry["value"] < entry["high"]


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = [pair(i) for i in range(60)]
    training = [pair(i) for i in range(100, 130)]
    hits = 0
    for _ in range(24):
        good = rng.random(60) < 0.5
        drafts = [p.message.body if g else "Dear Bob,\nno" for p, g in zip(held, good, strict=True)]
        found = evaluate(held, training, {"s": lambda _, d=drafts: SystemOutput(d)}, embed, samples=200)
        entry = found["systems"]["s"]["greeting"]
        hits += entry["low"] <= 0.5 <= entry["high"]
    assert hits >= 20


def test_floors():
    nearest = nearest_floor(HELD, TRAINING, embed).drafts
    assert all(WORDS[i % len(WORDS)] in draft for i, draft in enumerate(nearest))
    bodies = {p.message.body for p in TRAINING}
    drawn = random_floor(HELD, TRAINING, seed=3).drafts
    assert set(drawn) <= bodies and len(set(drawn)) > 3
    assert drawn == random_floor(HELD, TRAINING, seed=3).drafts != random_floor(HELD, TRAINING, seed=4).drafts


@pytest.mark.parametrize(
    ("held", "training", "word"),
    [
        (HELD, [*TRAINING, HELD[3]], "m3@x"),
        (HELD, [*TRAINING, pair(99, thread="t5")], "m5@x"),
        ([], TRAINING, "held-out"),
        (HELD, [], "training"),
    ],
)
def test_it_refuses_what_would_not_be_honest(held, training, word):
    with pytest.raises(UserError, match=word):
        evaluate(held, training, {"base": mute}, embed)


def test_mails_without_a_thread_share_none():
    held, training = ([replace(p, message=replace(p.message, thread=""))] for p in (HELD[0], TRAINING[0]))
    assert evaluate(held, training, {}, embed, samples=10)["n"] == 1


def test_repeated_words_are_counted():
    assert report()["repeated"] == 0
    assert evaluate(HELD, [*TRAINING, pair(70, HELD[0].message.body)], {}, embed, samples=10)["repeated"] == 1


def test_nothing_to_count_is_null():
    held = [PlaybackPair(p.message, "say yes", "model") for p in HELD]
    found = evaluate(held, TRAINING, {"base": mute}, embed, samples=10)
    assert found["systems"]["base"]["facts_kept"] == {"value": None, "low": None, "high": None}
    assert "-" in table(found)


def test_the_table_has_a_line_per_metric():
    lines = table(report()).splitlines()
    assert lines[0].startswith("n = 12")
    assert [line.split()[0] for line in lines[2:]] == ["perplexity", *METRICS]
    assert all(len(line) <= 160 for line in lines)
