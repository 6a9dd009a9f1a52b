"""Compare systems on held-out mails: every metric with its interval, next to two floors that use no model.

Knows pairs and texts; how a system writes, and what a mail costs it, comes in as a function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from panza.embed import Embed, MiniLM
from panza.metrics import METRICS, Pool, exp_ratio, rows, signatures
from panza.types import PlaybackPair, UserError

SAMPLES = 1000  # of the bootstrap


@dataclass(frozen=True, slots=True)
class SystemOutput:
    """What a system makes of held-out pairs: a draft each and, if it has a model, what the real mails cost it.

    nll: nats of each real mail, summed over its tokens; tokens: how many these are.
    """

    drafts: Sequence[str]
    nll: Sequence[float] | None = None
    tokens: Sequence[int] | None = None


System = Callable[[Sequence[PlaybackPair]], SystemOutput]


def evaluate(
    pairs: Sequence[PlaybackPair],
    training: Sequence[PlaybackPair],
    systems: Mapping[str, System],
    embed: Embed | None = None,
    *,
    seed: int = 0,
    samples: int = SAMPLES,
) -> dict[str, Any]:
    """A report on held-out `pairs`, ready for JSON; UserError if any of them, or of their threads, is in `training`.

    ``systems`` of the report holds the given systems and the floors, each metric as ``{"value", "low", "high"}`` (95 %
    bootstrap over mails; null where nothing could be counted). ``differences`` holds the last system minus each of
    the others, drawn on the same mails, in the metric's own unit.
    """
    refuse_seen(pairs, training)
    answers = {name: system(pairs) for name, system in systems.items()}
    answers["floor_random"] = random_floor(pairs, training, seed)
    answers["floor_nearest"] = nearest_floor(pairs, training, embed or MiniLM())
    draws = np.random.default_rng(seed).multinomial(len(pairs), [1 / len(pairs)] * len(pairs), size=samples)
    measured = {name: _measure(pairs, answer, draws) for name, answer in answers.items()}
    last = list(systems)[-1] if systems else ""
    others = [name for name in measured if name != last]
    return {
        "n": len(pairs),
        "training_mails": len(training),
        "systems": {name: {m: d.interval() for m, d in of.items()} for name, of in measured.items()},
        "differences": {f"{last}_minus_{o}": _differences(measured[last], measured[o]) for o in others if last},
        "repeated": _repeated(pairs, training),
        "bootstrap": {"samples": samples, "seed": seed, "level": 0.95},
        "signatures": signatures(),
    }


def refuse_seen(pairs: Sequence[PlaybackPair], training: Sequence[PlaybackPair]) -> None:
    """UserError where training saw a held-out mail or its thread, or where there is nothing to compare."""
    if not pairs:
        raise UserError("There is no held-out mail to evaluate on: import more sent mail and train again.")
    if not training:
        raise UserError("There is no training mail to compare with: import more sent mail and train again.")
    ids, threads = {p.message.id for p in training}, {p.message.thread for p in training} - {""}
    for p in pairs:
        if p.message.id in ids:
            raise UserError(f"The mail '{p.message.id}' was trained on: evaluate on held-out mails only.")
        if p.message.thread in threads:
            raise UserError(
                f"The thread of the mail '{p.message.id}' was trained on: evaluate on held-out threads only."
            )


def random_floor(pairs: Sequence[PlaybackPair], training: Sequence[PlaybackPair], seed: int) -> SystemOutput:
    """A training mail drawn by lot for each pair: what the author's habits alone are worth."""
    chosen = np.random.default_rng(seed).integers(len(training), size=len(pairs))
    return SystemOutput([training[i].message.body for i in chosen])


def nearest_floor(pairs: Sequence[PlaybackPair], training: Sequence[PlaybackPair], embed: Embed) -> SystemOutput:
    """The training mail nearest to each instruction by cosine: what copying is worth."""
    mails = embed([p.message.body for p in training])  # (T, D)
    asked = embed([p.instruction for p in pairs])  # (N, D)
    return SystemOutput([training[i].message.body for i in (asked @ mails.T).argmax(1)])


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A metric's value, and its value on each bootstrap sample."""

    value: float
    samples: np.ndarray

    def interval(self) -> dict[str, float | None]:
        known = self.samples[~np.isnan(self.samples)]
        low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (math.nan, math.nan)
        return {"value": _number(self.value), "low": _number(low), "high": _number(high)}


def _measure(pairs: Sequence[PlaybackPair], answer: SystemOutput, draws: np.ndarray) -> dict[str, _Drawn]:
    """Metric -> value and bootstrap.  draws (samples, N): how often each sample holds each mail"""
    references, asked = [p.message.body for p in pairs], [p.instruction for p in pairs]
    tables = {name: (m.pool, rows(m, answer.drafts, references, asked)) for name, m in METRICS.items()}
    if answer.nll is not None and answer.tokens is not None:
        costs = np.array(list(zip(answer.nll, answer.tokens, strict=True)), np.float64)
        assert len(costs) == len(pairs), "a system counted other mails than it was given"
        tables = {"perplexity": (exp_ratio, costs)} | tables
    return {name: _draw(pool, table, draws) for name, (pool, table) in tables.items()}


def _draw(pool: Pool, table: np.ndarray, draws: np.ndarray) -> _Drawn:
    return _Drawn(pool(table.sum(0)), np.array([pool(sums) for sums in draws @ table]))


def _differences(a: Mapping[str, _Drawn], b: Mapping[str, _Drawn]) -> dict[str, dict[str, float | None]]:
    shared = [name for name in a if name in b]
    return {m: _Drawn(a[m].value - b[m].value, a[m].samples - b[m].samples).interval() for m in shared}


def _repeated(pairs: Sequence[PlaybackPair], training: Sequence[PlaybackPair]) -> int:
    """Held-out mails whose words stand in training too, as form letters do; they are counted, not dropped."""
    known = {" ".join(p.message.body.split()) for p in training}
    return sum(" ".join(p.message.body.split()) in known for p in pairs)


def _number(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


def table(report: Mapping[str, Any]) -> str:
    """The report as plain text: a line per metric, a column per system, the 95 % interval in brackets."""
    systems: Mapping[str, Mapping[str, Any]] = report["systems"]
    metrics = list(dict.fromkeys(name for of in systems.values() for name in of))
    lines = [["", *systems]] + [[m, *(_cell(of.get(m)) for of in systems.values())] for m in metrics]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    body = ("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)
    return "\n".join([f"n = {report['n']} held-out mails; 95 % bootstrap intervals over mails", *body])


def _cell(entry: Mapping[str, float | None] | None) -> str:
    if not entry or entry["value"] is None:
        return "-"
    value, low, high = (entry[key] for key in ("value", "low", "high"))
    return f"{_short(value)} [{_short(low)}, {_short(high)}]"


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
