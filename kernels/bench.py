"""What the CPU kernels reach: `python kernels/bench.py`. Checks each against its definition first, then times it.

Every sample of a kernel follows one of the floor: a plain sum over as many bytes, by the same threads. `share_of_dram` is
the median of their ratio: 1 means that the product takes just the time in which memory can deliver the weight. Buffers
rotate through more than twice the last-level cache. Kernels are interleaved in random order; a sample in which the system
took a core away is repeated.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from compress import native  # noqa: E402
from compress.decode import Additive, Grid, Lut, Trellis  # noqa: E402
from compress.tables import Real, TwoLevel  # noqa: E402
from compress.transform import Transform  # noqa: E402
from compress.weight import QuantizedWeight, Sparse  # noqa: E402

SHAPES = ((4096, 4096), (11008, 4096))
ROUNDS, TRIES = 15, 20


def kernels(N: int, D: int) -> dict[str, Callable[[], QuantizedWeight]]:
    """What is measured: a name and a weight of (N, D), all of whose numbers are random."""
    made = {f"grid {b}-bit g128": lambda b=b: QuantizedWeight((N, D), Grid(N, D, b, Real(N, D // 128)), Real(N, D // 128)) for b in (2, 3, 4, 8)}  # fmt: skip
    made |= {f"trellis {s}-bit L{w}": lambda s=s, w=w: QuantizedWeight((N, D), Trellis(N, D, s, w), Real(N, 1)) for s, w in ((2, 7), (2, 8), (3, 7), (3, 8), (4, 8))}  # fmt: skip
    made |= {f"additive {m}x{b} g{g}": lambda m=m, b=b, g=g: QuantizedWeight((N, D), Additive(N, D, m, b, g), Real(N, 1)) for m, b, g in ((2, 8, 8), (1, 8, 4), (1, 8, 8), (4, 4, 8), (1, 16, 8))}  # fmt: skip
    made |= {f"lut {b}-bit": lambda b=b: QuantizedWeight((N, D), Lut(N, D, b, N)) for b in (2, 3)}
    made["spqr 3-bit 1 %"] = lambda: QuantizedWeight((N, D), Grid(N, D, 3, TwoLevel(N, D // 16, 3, 16)), TwoLevel(N, D // 16, 3, 16), sparse=Sparse.of(torch.randn(N, D) * (torch.rand(N, D) < 0.01)))  # fmt: skip
    made["rotated trellis 2-bit L8"] = lambda: QuantizedWeight((N, D), Trellis(N, D, 2, 8), Real(N, 1), Transform.random(N, D, min(D & -D, 1024), min(N & -N, 1024), 0))  # fmt: skip
    return made


def fill(weight: QuantizedWeight) -> QuantizedWeight:
    for name, t in weight.state_dict().items():
        if t.dtype == torch.uint8:
            t.random_(0, 256)
        elif t.is_floating_point() and "sparse" not in name:
            t.normal_()
    return weight


def checked(weight: QuantizedWeight) -> float:
    """The relative error of a product of one token; raises AssertionError if it is not that of the definition."""
    x = torch.randn(1, weight.shape[1])
    exact = x.double() @ weight.dense().detach().double().T
    y = torch.from_numpy(native.linear(weight).multiply(x.numpy(), native.pool(2)))
    error = ((y - exact).norm() / exact.norm()).item()
    assert error < 2e-3, f"off by {error:.1e}"
    return error


def last_level_cache() -> int:
    """Bytes, 32 MB if the system does not tell."""
    sizes = [p.read_text().strip() for p in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(s[:-1]) * {"K": 1 << 10, "M": 1 << 20}[s[-1]] for s in sizes), default=32 << 20)


class Timed:
    """One kernel on one shape: copies of a weight that together are larger than the cache."""

    def __init__(self, weight: QuantizedWeight, span: int) -> None:
        first = native.linear(weight)
        self.copies = [first] + [native.linear(weight) for _ in range(max(1, span // first.bytes))]
        self.at, self.bytes, self.shape = 0, first.bytes, first.shape

    def sample(self, x: np.ndarray, pool: object) -> float:
        self.at = (self.at + 1) % len(self.copies)
        start = time.perf_counter()
        self.copies[self.at].multiply(x, pool)
        return time.perf_counter() - start


class Floor:
    """Sums over rotating parts of a large buffer."""

    def __init__(self, span: int) -> None:
        self.words = np.ones(span // 8, np.uint64)
        self.at = 0

    def sample(self, count: int, pool: object) -> float:
        words = count // 8
        self.at = self.at if self.at + words <= len(self.words) else 0
        part = self.words[self.at : self.at + words]
        self.at += words
        start = time.perf_counter()
        native._kernels.sum(part, pool)
        return time.perf_counter() - start


def undisturbed(sample: Callable[[], float]) -> float:
    """A sample during which no thread was taken off its core, or the best of some."""
    best = float("inf")
    for _ in range(TRIES):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        best = min(best, sample())
        if resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw == before:
            break
    return best


def measure(timed: Timed, floor: Floor, tokens: int, pool: object) -> tuple[float, float]:
    """(seconds, seconds of the floor), one pair."""
    x = np.random.default_rng().standard_normal((tokens, timed.shape[1]), np.float32)
    least = undisturbed(lambda: floor.sample(timed.bytes, pool))
    return undisturbed(lambda: timed.sample(x, pool)), least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a part of the kernels' names")
    parser.add_argument("--shape", default="", help="NxD instead of the standard shapes")
    parser.add_argument("--tokens", default="1", help="tokens at once, with commas")
    parser.add_argument("--threads", default="1,2", help="threads, with commas")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--span", type=int, default=0, help="megabytes that buffers rotate through; 0: twice the last-level cache"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not native.available():
        sys.exit("This installation has no native kernels: install with a C++ compiler.")
    shapes = [tuple(map(int, args.shape.split("x")))] if args.shape else SHAPES
    span = (args.span << 20) or 2 * last_level_cache()
    floor = Floor(span)
    for N, D in shapes:
        timed, errors = {}, {}
        for name, make in kernels(N, D).items():
            if args.only in name:
                errors[name] = checked(fill(make()) if N * D <= 4096 * 4096 else fill(kernels(512, D)[name]()))
                timed[name] = Timed(fill(make()), span)
        for tokens in map(int, args.tokens.split(",")):
            for threads in map(int, args.threads.split(",")):
                pool, pairs = native.pool(threads), {name: [] for name in timed}
                for _ in range(args.rounds):
                    for name in random.sample(list(timed), len(timed)):
                        pairs[name].append(measure(timed[name], floor, tokens, pool))
                for name, kernel in timed.items():
                    show(name, kernel, tokens, threads, pairs[name], errors[name], args.json)


def show(name: str, kernel: Timed, tokens: int, threads: int, pairs: list, error: float, as_json: bool) -> None:
    seconds = statistics.median(s for s, _ in pairs)
    share = statistics.median(f / s for s, f in pairs)
    N, D = kernel.shape
    row = {
        "kernel": name, "bits": round(kernel.bytes * 8 / (N * D), 3), "shape": [N, D], "tokens": tokens, "threads": threads,
        "us": round(seconds * 1e6, 1), "gb_per_s": round(kernel.bytes / seconds / 1e9, 2), "share_of_dram": round(share, 3),
        "weights_per_s": round(N * D * tokens / seconds / 1e9, 2) * 1e9, "error": error, "isa": native._kernels.isa(),
    }  # fmt: skip
    if as_json:
        print(json.dumps(row), flush=True)
    else:
        print(f"{name:26s} {row['bits']:6.3f} b {N}x{D} {tokens} tok {threads} thr {row['us']:9.1f} us {row['gb_per_s']:6.2f} GB/s {100 * share:5.1f} % of DRAM {row['weights_per_s'] / 1e9:6.1f} Gw/s  error {error:.1e}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
