"""Metrics against values worked out by hand, and against what a careless metric would miss."""

import math

import numpy as np
import pytest
import sacrebleu

from panza.metrics import METRICS, rows, score, signatures

MAILS = ["Hi Anna,\n\nthe review is on Thursday at 3pm.\n\nThanks,\nKevin", "Bob, see you at 5. Jim", "ok"]
ASKED = ["tell Anna the review is Thursday 3pm", "tell Bob 5", ""]
DRAFTS = ["Hi Bob,\n\nthe review is on Friday at 3 pm.\n\nThanks,\nKevin", "Jim, see you at 5. Bob", "no"]
BEST = {"bleu": 100, "chrf": 100}


def one(name: str, draft: str, reference: str, asked: str = "") -> float:
    return score(name, [draft], [reference], [asked])


@pytest.mark.parametrize("name", METRICS)
def test_a_perfect_draft_has_the_best_score(name):
    assert score(name, MAILS, MAILS, ASKED) == pytest.approx(BEST.get(name, 1))


def test_corpus_bleu_is_sacrebleus():
    assert score("bleu", DRAFTS, MAILS, ASKED) == pytest.approx(sacrebleu.corpus_bleu(DRAFTS, [MAILS]).score)
    assert "version:" in signatures()["bleu"]
    assert "mean of sentence scores" in signatures()["chrf"]


def test_chrf_is_the_mean_of_sacrebleus_sentences():
    by_hand = np.mean([sacrebleu.sentence_chrf(d, [r]).score for d, r in zip(DRAFTS, MAILS, strict=True)])
    assert score("chrf", DRAFTS, MAILS, ASKED) == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("draft", "reference", "f1"),
    [
        ("a b c d", "a c d e", 2 * 3 / 8),  # a c d
        ("a b", "b a", 2 * 1 / 4),
        ("x", "y", 0),
        ("don't go.", "don't go", 2 * 2 / 5),  # the full stop is a token
        ("a a a", "a", 2 * 1 / 4),
        ("", "", 1),
        ("", "a", 0),
    ],
)
def test_rouge_l_by_hand(draft, reference, f1):
    assert one("rouge_l", draft, reference) == pytest.approx(f1)


def test_rouge_l_agrees_with_the_textbook_table():
    def textbook(a: str, b: str) -> int:
        table = np.zeros((len(a) + 1, len(b) + 1), int)
        for i, x in enumerate(a, 1):
            for j, y in enumerate(b, 1):
                table[i, j] = table[i - 1, j - 1] + 1 if x == y else max(table[i - 1, j], table[i, j - 1])
        return table[-1, -1]

    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = ("".join(rng.choice(list("abc"), rng.integers(1, 90))) for _ in range(2))
        expected = 2 * textbook(a, b) / (len(a) + len(b))
        assert one("rouge_l", " ".join(a), " ".join(b)) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["bleu", "rouge_l", "chrf", "greeting", "sign_off"])
def test_capitals_count(name):
    shouted = [mail.upper() for mail in MAILS]
    assert score(name, shouted, MAILS, ASKED) < 0.7 * score(name, MAILS, MAILS, ASKED)


@pytest.mark.parametrize("name", ["bleu", "rouge_l", "chrf", "sign_off"])
def test_punctuation_counts(name):
    bare = [mail.replace(",", "").replace(".", "") for mail in MAILS]
    assert score(name, bare, MAILS, ASKED) < score(name, MAILS, MAILS, ASKED)


def test_greetings_match_by_form_and_sign_offs_by_words():
    assert one("greeting", "Hi Bob,\nx", "Hi Anna,\ny") == 1
    assert one("greeting", "Dear Bob,\nx", "Hi Anna,\ny") == 0
    assert one("greeting", "see you there", "so it is") == 1
    assert one("sign_off", "so it is.\n\nThanks,\nKevin", "see you there.\nThanks,\nKevin") == 1
    assert one("sign_off", "so it is.\n\nThanks\nKevin", "see you there.\nThanks,\nKevin") == 0
    assert one("sign_off", "so it is.", "see you there.\nThanks,\nKevin") == 0
    assert one("sign_off", "so it is.", "see you there.") == 1


def test_length_ratio_is_geometric():
    assert one("length_ratio", "a " * 19, "a " * 9) == pytest.approx(2)
    assert score("length_ratio", ["a " * 19, "a " * 9], ["a " * 9, "a " * 19], ["", ""]) == pytest.approx(1)


def test_facts_are_the_instructions_facts():
    assert score("facts_kept", DRAFTS, MAILS, ASKED) == pytest.approx(3 / 5)  # 3pm, Bob, 5; not Anna, not Thursday
    assert math.isnan(one("facts_kept", "anything", "anything", "say yes"))


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(
    ("draft", "reference"), [("", "Hi Anna,\nyes.\nThanks,\nKevin"), ("yes", ""), ("", ""), ("\0é", "…")]
)
def test_odd_texts_have_a_score(name, draft, reference):
    value = one(name, draft, reference, "tell Anna")
    assert math.isfinite(value) and value >= 0


@pytest.mark.parametrize("name", METRICS)
def test_an_empty_draft_never_wins(name):
    assert score(name, ["", "", ""], MAILS, ASKED) < 0.5 * BEST.get(name, 1)


@pytest.mark.parametrize("name", METRICS)
def test_rows_add_up(name):
    metric = METRICS[name]
    table = rows(metric, DRAFTS * 2, MAILS * 2, ASKED * 2)
    assert len(table) == 6
    assert metric.pool(table.sum(0)) == pytest.approx(score(name, DRAFTS, MAILS, ASKED))
