"""What the CPU kernels reach: `python kernels/bench.py`. Checks each against its definition first, then times it.

Every sample of a kernel follows one of the floor: a plain sum over as many bytes, by the same threads. `share_of_dram` is
the median of their ratio: 1 means that the product takes just the time in which memory can deliver the weight. Buffers
rotate through more than twice the last-level cache. Kernels are interleaved in random order; a sample in which the system
took a core away is repeated. With `--rivals` the products of torch and llama.cpp take part (rivals.py).
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
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from compress import native  # noqa: E402
from compress.decode import Additive, Grid, Lut, Trellis  # noqa: E402
from compress.tables import Real, TwoLevel  # noqa: E402
from compress.transform import Transform  # noqa: E402
from compress.weight import QuantizedWeight, Sparse  # noqa: E402
from kernels import rivals  # noqa: E402

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


def checked(weight: QuantizedWeight, exact: bool) -> float:
    """The relative error of a product of one token; raises AssertionError if it is not that of the definition."""
    x = torch.randn(1, weight.shape[1])
    wanted = x.double() @ weight.dense().detach().double().T
    y = torch.from_numpy(native.linear(weight, exact=exact).multiply(x.numpy(), native.pool(2)))
    error = ((y - wanted).norm() / wanted.norm()).item()
    assert error < (2e-3 if exact else 0.04), f"off by {error:.1e}"
    return error


def last_level_cache() -> int:
    """Bytes, 32 MB if the system does not tell."""
    sizes = [p.read_text().strip() for p in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(s[:-1]) * {"K": 1 << 10, "M": 1 << 20}[s[-1]] for s in sizes), default=32 << 20)


class Timed:
    """One kernel on one shape: copies of a weight that together are larger than the cache. error: see `checked`."""

    def __init__(self, weight: QuantizedWeight, span: int, exact: bool, error: float) -> None:
        first = native.linear(weight, exact=exact)
        more = rivals.copies(first.bytes, span) - 1
        self.copies = [first] + [native.linear(weight, exact=exact) for _ in range(more)]
        self.at, self.bytes, self.shape, self.error = 0, first.bytes, first.shape, error

    def sample(self, x: np.ndarray, pool: object) -> float:
        self.at = (self.at + 1) % len(self.copies)
        start = time.perf_counter()
        self.copies[self.at].multiply(x, pool)
        return time.perf_counter() - start


class Floor:
    """Sums over rotating parts of a buffer of `span` bytes, the most that a part may have."""

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


def undisturbed(sample: Callable[[], float], tries: int) -> float:
    """A sample during which no thread was taken off its core, or the best of some."""
    taken: list[float] = []
    while len(taken) < tries:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        taken.append(sample())
        if resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw == before:
            return taken[-1]
    return min(taken)


def candidates(N: int, D: int, span: int, only: list[str], exact: bool, with_rivals: bool) -> dict[str, Any]:
    """What takes part, by name, each checked: Timed, and rivals that look like it. only: parts of names."""
    chosen: dict[str, Any] = {}
    for name, make in kernels(N, D).items():
        if any(part in name for part in only):
            error = checked(fill(make()) if N * D <= 4096 * 4096 else fill(kernels(512, D)[name]()), exact)
            chosen[name] = Timed(fill(make()), span, exact, error)
    for name, make in (rivals.rivals(N, D, span) if with_rivals else {}).items():
        if any(part in name for part in only):
            chosen[name] = make()
    return chosen


def measure(timed: Any, floor: Floor, tokens: int, pool: object) -> tuple[float, float]:
    """(seconds, seconds of the floor), one pair."""
    x = np.random.default_rng().standard_normal((tokens, timed.shape[1]), np.float32)
    tries = max(3, TRIES // tokens)  # what takes long is never left alone for long where others work
    least = undisturbed(lambda: floor.sample(timed.bytes, pool), tries)
    return undisturbed(lambda: timed.sample(x, pool), tries), least


def main() -> None:
    if "--gpu" in sys.argv[1:]:
        from kernels import bench_gpu

        return bench_gpu.main([a for a in sys.argv[1:] if a != "--gpu"])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="parts of the kernels' names, with commas")
    parser.add_argument("--shape", default="", help="NxD instead of the standard shapes")
    parser.add_argument("--tokens", default="1", help="tokens at once, with commas")
    parser.add_argument("--threads", default="1,2", help="threads, with commas")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--span", type=int, default=0, help="megabytes that buffers rotate through; 0: twice the last-level cache"
    )
    parser.add_argument(
        "--rounded", action="store_true", help="inputs and tables rounded to 8 bits, as drafts take them"
    )
    parser.add_argument("--rivals", action="store_true", help="beside torch and, where it is installed, llama.cpp")
    written = parser.add_mutually_exclusive_group()
    written.add_argument("--json", action="store_true")
    written.add_argument("--table", action="store_true", help="Markdown, at the end")
    args = parser.parse_args()
    if not native.available():
        sys.exit("This installation has no native kernels: install with a C++ compiler.")
    shapes = [tuple(map(int, args.shape.split("x")))] if args.shape else SHAPES
    span = (args.span << 20) or 2 * last_level_cache()
    rows = []
    for N, D in shapes:
        timed = candidates(N, D, span, args.only.split(","), not args.rounded, args.rivals)
        floor = Floor(max([span, *(kernel.bytes for kernel in timed.values())]))
        for tokens in map(int, args.tokens.split(",")):
            for threads in map(int, args.threads.split(",")):
                pool, pairs = native.pool(threads), {name: [] for name in timed}
                for _ in range(args.rounds):
                    for name in random.sample(list(timed), len(timed)):
                        pairs[name].append(measure(timed[name], floor, tokens, pool))
                rows += [row(name, kernel, tokens, threads, pairs[name]) for name, kernel in timed.items()]
                if not args.table:
                    print("\n".join(map(json.dumps if args.json else line, rows[-len(timed) :])), flush=True)
    if args.table:
        print(table(rows))
        print("\nllama.cpp was compiled for", rivals.features() or "nothing: it is not installed")


def row(name: str, kernel: Any, tokens: int, threads: int, pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """The medians of all pairs of `measure`."""
    seconds = statistics.median(s for s, _ in pairs)
    share = statistics.median(f / s for s, f in pairs)
    N, D = kernel.shape
    return {
        "kernel": name, "bits": round(kernel.bytes * 8 / (N * D), 3), "shape": [N, D], "tokens": tokens, "threads": threads,
        "us": round(seconds * 1e6, 1), "gb_per_s": round(kernel.bytes / seconds / 1e9, 2), "share_of_dram": round(share, 3),
        "weights_per_s": round(N * D * tokens / seconds / 1e9, 2) * 1e9, "error": kernel.error, "isa": native._kernels.isa(),
    }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """For people."""
    shape = "x".join(map(str, row["shape"]))
    return f"{row['kernel']:26s} {row['bits']:6.3f} b {shape} {row['tokens']} tok {row['threads']} thr {row['us']:9.1f} us {row['gb_per_s']:6.2f} GB/s {100 * row['share_of_dram']:5.1f} % of DRAM {row['weights_per_s'] / 1e9:6.1f} Gw/s  error {row['error']:.1e}"  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each kernel and shape; µs, and of one token the share of DRAM, in a column for each of the rest."""
    columns = list(dict.fromkeys((r["tokens"], r["threads"]) for r in rows))
    heads = [f"{t} token{'s' * (t > 1)}, {n} thread{'s' * (n > 1)}" for t, n in columns]
    made = ["| weight | shape | bits | " + " | ".join(heads) + " | error |", "|---" * (len(heads) + 4) + "|"]
    for first in (r for r in rows if (r["tokens"], r["threads"]) == columns[0]):
        same = [r for r in rows if (r["kernel"], r["shape"]) == (first["kernel"], first["shape"])]
        cells = [f"{r['us']:,.0f}" + f", {r['share_of_dram']:.0%}" * (r["tokens"] == 1) for r in same]
        shape = "×".join(map(str, first["shape"]))
        made.append(
            f"| {first['kernel']} | {shape} | {first['bits']:.2f} | {' | '.join(cells)} | {first['error']:.0e} |"
        )
    return "\n".join(made)


if __name__ == "__main__":
    main()
