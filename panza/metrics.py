"""What a draft is measured by: one function per metric, one table. Knows texts; knows no model and no store.

A metric turns one mail into a few numbers that may be summed over mails, and turns the sums into its value. So a
bootstrap draws mails, sums their rows and asks for the value again: exact for corpus BLEU as for a mean.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from sacrebleu.metrics import BLEU, CHRF

from panza.facts import facts, kept
from panza.letter import greeting_form, sign_off

Row = tuple[float, ...]  # one mail's numbers; those of several mails are summed
Pool = Callable[[np.ndarray], float]  # the sums -> the value


def bleu(draft: str, reference: str, instruction: str) -> Row:
    """Corpus BLEU, 0-100: matched and possible n-grams (n = 1..4), then the lengths of draft and reference."""
    score = _BLEU.sentence_score(draft, [reference])
    return (*score.counts, *score.totals, score.sys_len, score.ref_len)


def rouge_l(draft: str, reference: str, instruction: str) -> Row:
    """F1 of the longest common subsequence of words and punctuation marks, case kept; mean over mails, 0-1."""
    a, b = _tokens(draft), _tokens(reference)
    return (2 * _common(a, b) / (len(a) + len(b)) if a or b else 1.0, 1)


def chrf(draft: str, reference: str, instruction: str) -> Row:
    """Sentence chrF (character 6-grams, beta 2, case kept), 0-100; mean over mails. Two empty texts agree."""
    return (100.0 if not draft.strip() and not reference.strip() else _CHRF.sentence_score(draft, [reference]).score, 1)


def greeting(draft: str, reference: str, instruction: str) -> Row:
    """Share of mails whose greeting has the reference's form ("Hi NAME,"); none matches none.

    An empty draft matches nothing, here and in `sign_off_match`.
    """
    return (float(_written(draft, reference) and greeting_form(draft) == greeting_form(reference)), 1)


def sign_off_match(draft: str, reference: str, instruction: str) -> Row:
    """Share of mails that close with the reference's words, punctuation and line breaks; none matches none."""
    return (float(_written(draft, reference) and sign_off(draft) == sign_off(reference)), 1)


def length_ratio(draft: str, reference: str, instruction: str) -> Row:
    """Words of the draft per word of the reference, geometric mean over mails, one word added to both.

    Geometric, so that one mail twice too long and one half as long cancel out; an arithmetic mean would say 1.25.
    """
    return (math.log((len(draft.split()) + 1) / (len(reference.split()) + 1)), 1)


def facts_kept(draft: str, reference: str, instruction: str) -> Row:
    """Share of the instruction's facts that the draft states, over all facts of all mails."""
    wanted = facts(instruction)
    return (sum(kept(fact, draft) for fact in wanted), len(wanted))


def ratio(sums: np.ndarray) -> float:
    """First sum over second; nan where nothing was counted."""
    return float(sums[0] / sums[1]) if sums[1] else math.nan


def exp_ratio(sums: np.ndarray) -> float:
    return math.exp(min(ratio(sums), 700.0))


def pooled_bleu(sums: np.ndarray) -> float:
    *_, drafted, wanted = numbers = [int(n) for n in sums]
    return BLEU.compute_bleu(numbers[:4], numbers[4:8], drafted, wanted, smooth_method="exp").score


@dataclass(frozen=True)
class Metric:
    """`row` measures one mail (draft, reference, instruction); `pool` turns the sum of rows into the value."""

    row: Callable[[str, str, str], Row]
    pool: Pool = ratio


METRICS: dict[str, Metric] = {
    "bleu": Metric(bleu, pooled_bleu),
    "rouge_l": Metric(rouge_l),
    "chrf": Metric(chrf),
    "greeting": Metric(greeting),
    "sign_off": Metric(sign_off_match),
    "length_ratio": Metric(length_ratio, exp_ratio),
    "facts_kept": Metric(facts_kept),
}

_BLEU = BLEU(effective_order=True)  # the order only matters for a single sentence's score, which is not used
_CHRF = CHRF()


def rows(metric: Metric, drafts: Sequence[str], references: Sequence[str], instructions: Sequence[str]) -> np.ndarray:
    """One row per mail.  (N, columns of the metric) float64"""
    texts = zip(drafts, references, instructions, strict=True)
    return np.array([metric.row(*t) for t in texts], dtype=np.float64)


def score(name: str, drafts: Sequence[str], references: Sequence[str], instructions: Sequence[str]) -> float:
    """The value of one metric over all mails."""
    metric = METRICS[name]
    return metric.pool(rows(metric, drafts, references, instructions).sum(0))


def signatures() -> dict[str, str]:
    """How sacrebleu was set, in its own words, so that another can repeat the numbers."""
    corpus, sentence = BLEU(), CHRF()
    for metric in (corpus, sentence):  # a signature holds the number of references, known once one was seen
        metric.corpus_score(["a"], [["a"]])
    return {"bleu": str(corpus.get_signature()), "chrf": f"{sentence.get_signature()}|mean of sentence scores"}


def _written(draft: str, reference: str) -> bool:
    return bool(draft.strip()) or not reference.strip()


def _tokens(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’]\w+)*|[^\w\s]", text)


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, by the bits of one long integer (Crochemore et al. 2001)."""
    where: dict[str, int] = {}
    for i, token in enumerate(a):
        where[token] = where.get(token, 0) | 1 << i
    ones = row = (1 << len(a)) - 1
    for token in b:
        hit = row & where.get(token, 0)
        row = (row + hit | row - hit) & ones
    return len(a) - row.bit_count()
