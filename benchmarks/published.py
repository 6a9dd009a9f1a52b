"""AQLM and SpQR against their published steps: error and time on five real layers. `python -m benchmarks.published`.

The published steps are the plain transcriptions that the tests compare with (tests/compress/published). For each layer
the two take turns; times are processor seconds, medians of `--rounds`. An error is tr(ΔW H ΔWᵀ) over tr(W H Wᵀ).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from compress import ops
from compress.methods import aqlm, spqr
from tests.compress.conftest import real_layers
from tests.compress.published.aqlm import aqlm as published_aqlm
from tests.compress.published.spqr import spqr as published_spqr

Run = Callable[[Tensor, Tensor], Tensor]  # weight, Hessian -> what it decodes to
PAIRS: dict[str, tuple[Run, Run]] = {
    "spqr": (
        lambda w, h: spqr.quantize([w], [h], spqr.Config())[0].dense().detach(),
        lambda w, h: published_spqr(w, h[0], 3, 16, 3, 16, spqr.Config.threshold, spqr.Config.damping).weight,
    ),
    "aqlm": (
        lambda w, h: aqlm.quantize([w], [h], aqlm.Config(shape="2x8g8"))[0].dense().detach(),
        lambda w, h: published_aqlm(w, h[0], 2, 8, 8)[0],
    ),
}


def measured(run: Run, w: Tensor, h: Tensor) -> tuple[float, float]:
    """(processor seconds, relative error)"""
    start = time.process_time()
    made = run(w, h)
    seconds = time.process_time() - start
    return seconds, (ops.weighted_error(w - made, h) / ops.weighted_error(w, h)).item()


def main() -> int:
    """A line of JSON for each layer."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published", description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_args()
    torch.set_num_threads(1)
    layers = real_layers()
    for method in a.methods:
        measured(PAIRS[method][0], *layers[0][1:])  # warm
        for name, w, h in layers:
            ours, theirs = zip(*([measured(run, w, h) for run in PAIRS[method]] for _ in range(a.rounds)), strict=True)
            seconds = [statistics.median(s for s, _ in side) for side in (ours, theirs)]
            row = {"method": method, "layer": name, "shape": tuple(w.shape), "seconds": round(seconds[0], 3)}
            row |= {"published_seconds": round(seconds[1], 3), "times_faster": round(seconds[1] / seconds[0], 1)}
            print(
                json.dumps(row | {"error": round(ours[0][1], 5), "published_error": round(theirs[0][1], 5)}), flush=True
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
