"""What the GPU's kernels reach: `python kernels/bench.py --gpu`. Checks each against fp64 first, then times it.

One row a weight, shape and number of tokens: microseconds of our product, of cuBLAS fp16 on the decoded weight in the same
run, and of the floor (the packed weight's bytes at the rate of a device copy, measured first). A sample is a CUDA graph of
products that rotate through copies of the weight, more than three times the L2 cache; the median of the samples counts.
With `--rivals` the products of aqlm, spqr_quant and gemlite take part, where they are installed (rivals_gpu.py).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))

from compress import cuda, nvrtc  # noqa: E402
from compress.cuda import Knobs, Layout, Packed  # noqa: E402
from compress.decode import Additive, Grid, Trellis  # noqa: E402
from compress.tables import Real, TwoLevel  # noqa: E402
from compress.transform import Transform  # noqa: E402
from compress.weight import QuantizedWeight, Sparse  # noqa: E402
from kernels import rivals_gpu  # noqa: E402

SHAPES = ((11008, 4096), (14336, 4096), (28672, 8192))
TOKENS = (1, 4, 16, 64)
SPAN, SAMPLES = 200 << 20, 15


def kernels(N: int, D: int) -> dict[str, Callable[[], QuantizedWeight]]:
    """What is measured: a name and a weight of (N, D), all of whose numbers are random."""
    two = lambda: TwoLevel(N, D // 16, 3, 16)  # noqa: E731
    return {
        "grid 3-bit g128": lambda: QuantizedWeight((N, D), Grid(N, D, 3, Real(N, D // 128)), Real(N, D // 128)),
        "trellis 2-bit L7": lambda: QuantizedWeight((N, D), Trellis(N, D, 2, 7), Real(N, 1)),
        "additive 2x8 g8": lambda: QuantizedWeight((N, D), Additive(N, D, 2, 8, 8), Real(N, 1)),
        "SpQR 3-bit 1 %": lambda: QuantizedWeight((N, D), Grid(N, D, 3, two()), two(), sparse=Sparse(N, D, N * D // 100)),
        "grid 2-bit g128": lambda: QuantizedWeight((N, D), Grid(N, D, 2, Real(N, D // 128)), Real(N, D // 128)),
        "grid 4-bit g128": lambda: QuantizedWeight((N, D), Grid(N, D, 4, Real(N, D // 128)), Real(N, D // 128)),
        "trellis 2-bit L8": lambda: QuantizedWeight((N, D), Trellis(N, D, 2, 8), Real(N, 1)),
        "trellis 3-bit L8": lambda: QuantizedWeight((N, D), Trellis(N, D, 3, 8), Real(N, 1)),
        "trellis 4-bit L8": lambda: QuantizedWeight((N, D), Trellis(N, D, 4, 8), Real(N, 1)),
        "rotated trellis 2-bit L7": lambda: QuantizedWeight((N, D), Trellis(N, D, 2, 7), Real(N, 1), Transform.random(N, D, min(D & -D, 1024), min(N & -N, 1024), 0)),
        "additive 1x8 g8": lambda: QuantizedWeight((N, D), Additive(N, D, 1, 8, 8), Real(N, 1)),
        "additive 1x16 g8": lambda: QuantizedWeight((N, D), Additive(N, D, 1, 16, 8), Real(N, 1)),
    }  # fmt: skip


def filled(weight: QuantizedWeight) -> QuantizedWeight:
    """On the GPU; scales near 1/sqrt(D), so that products are of the size of inputs, of both signs, so that rows have no mean
    in common, whose errors would grow from product to product."""
    weight = weight.cuda().requires_grad_(False)
    for name, t in weight.state_dict().items():
        if t.dtype == torch.uint8:
            t.random_(0, 256)
        elif name.startswith("scale"):
            signs = torch.randint(2, t.shape, device="cuda") * 2 - 1
            t.copy_(signs * (0.5 + torch.rand(t.shape, device="cuda")) / weight.decode.D**0.5)
        elif t.is_floating_point():
            t.normal_()
    if weight.sparse is not None:
        _scatter(weight.sparse)
    return weight


def _scatter(sparse: Sparse) -> None:
    """So many outliers at random places, in rows of different lengths."""
    where = torch.randint(sparse.N * sparse.D, (len(sparse.values),), device="cuda").unique()
    sparse.values = torch.nn.Parameter(torch.randn(len(where), device="cuda").half(), requires_grad=False)
    counts = torch.bincount(where // sparse.D, minlength=sparse.N)
    sparse.starts = F.pad(counts.cumsum(0), (1, 0)).int()
    sparse.columns = (where % sparse.D).to(torch.uint16)


@dataclass(frozen=True)
class Subject:
    """What is measured: products (B, D) fp16 -> (B, N) with copies of one weight of so many bytes. dense: (N, D), what it
    stands for. A product is right if its error is at most `right`, or twice that of fp16 on the dense weight."""

    calls: Sequence[Callable[[Tensor], Tensor]]
    bytes: int
    dense: Tensor
    right: float = 0.0


def copy_of(packed: Packed) -> Packed:
    return replace(packed, parts=[t.clone() for t in packed.parts])


def copies_of(packed: Packed) -> list[Packed]:
    return [packed, *(copy_of(packed) for _ in more(packed.bytes()))]


def more(size: int) -> range:
    """One for each further copy of a weight of `size` bytes."""
    return range(min(32, SPAN // size))


def ours(make: Callable[[], QuantizedWeight]) -> Subject:
    weight = filled(make())
    packed = cuda.pack(weight)
    copies = copies_of(packed)
    return Subject([partial(cuda.linear, p) for p in copies], packed.bytes(), weight.dense())


def cublas(N: int, D: int) -> Subject:
    dense = torch.randn(N, D, device="cuda").half()
    copies = [dense, *(dense.clone() for _ in more(dense.nbytes))]
    return Subject([partial(F.linear, weight=w) for w in copies], dense.nbytes, dense)


def rival(make: Callable[[], rivals_gpu.Rival]) -> Subject:
    made = make()
    copies = [made.layer, *(deepcopy(made.layer) for _ in more(made.bytes()))]
    return Subject(copies, made.bytes(), made.dense, rivals_gpu.RIGHT)


def relative(y: Tensor, exact: Tensor) -> float:
    return ((y.double() - exact).norm() / exact.norm()).item()


def checked(subject: Subject, B: int) -> tuple[float, float]:
    """(its error, that of fp16 on the dense weight) against fp64; raises AssertionError if the product is not right."""
    (N, D), device = subject.dense.shape, subject.dense.device
    x = torch.randn(B, D, device=device).half()
    rows = torch.randperm(N, device=device)[:4096]
    dense = subject.dense[rows]
    exact = x.double() @ dense.double().T
    error = relative(subject.calls[0](x)[:, rows], exact)
    plain = relative(F.linear(x, dense.half()), exact)
    assert error <= max(2 * plain, subject.right), f"off by {error:.1e}, fp16 by {plain:.1e}"
    return error, plain


def timed(calls: list[Callable[[], object]]) -> tuple[float, bool]:
    """(the median time of a call, whether from graphs): else they are launched one by one, and the host's time counts."""
    try:
        return microseconds(calls), True
    except RuntimeError:
        calls = in_turn(calls)
        return median(lambda: [call() for call in calls]) / len(calls), False


def microseconds(calls: list[Callable[[], object]]) -> float:
    """The median time of a call, from graphs of all of them in turn; RuntimeError if no graph can hold one."""
    calls = in_turn(calls)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        calls[0]()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            for call in calls:
                call()
    return median(graph.replay) / len(calls)


def in_turn(calls: list[Callable[[], object]]) -> list[Callable[[], object]]:
    return calls * -(-16 // len(calls))


def median(run: Callable[[], object]) -> float:
    """Microseconds."""
    times = []
    for _ in range(SAMPLES):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1000)
    return statistics.median(times[3:])


def copy_rate() -> float:
    """Bytes a microsecond, read and written, of a large copy."""
    a = torch.empty(1 << 30, dtype=torch.float32, device="cuda").normal_()
    b = torch.empty_like(a)
    return 2 * a.nbytes / median(lambda: b.copy_(a))


def measured(name: str, subject: Subject, B: int, rate: float, cublas_us: dict[int, float]) -> dict:
    """A row. cublas_us: by tokens; empty for cuBLAS itself."""
    (N, D), (error, plain) = subject.dense.shape, checked(subject, B)
    x = torch.randn(B, D, device="cuda").half()
    us, graph = timed([partial(call, x) for call in subject.calls])
    return {"kernel": name, "bits": subject.bytes * 8 / (N * D), "shape": [N, D], "tokens": B, "us": us, "graph": graph,
            "cublas_us": cublas_us.get(B, us), "ratio": cublas_us.get(B, us) / us, "floor_us": subject.bytes / rate,
            "error": error, "fp16_error": plain}  # fmt: skip


def bench(args: argparse.Namespace) -> list[dict]:
    rate = copy_rate()
    print(f"{torch.cuda.get_device_name()}: a copy moves {rate / 1e6:.2f} TB/s")
    for complaint in rivals_gpu.missing() if args.rivals else ():
        print(complaint)
    return [row for N, D in args.shapes for row in bench_shape(N, D, rate, args)]


def bench_shape(N: int, D: int, rate: float, args: argparse.Namespace) -> list[dict]:
    rows, base = [], {}

    def measure(name: str, make: Callable[[], Subject]) -> None:
        subject = make()
        for B in args.tokens:
            rows.append(measured(name, subject, B, rate, base))
            print(line(rows[-1]), flush=True)

    measure("cuBLAS fp16", partial(cublas, N, D))
    base |= {row["tokens"]: row["us"] for row in rows}
    for name, make in chosen(kernels(N, D), args.only):
        measure(name, partial(ours, make))
        torch.cuda.empty_cache()
    for name, make in chosen(rivals_gpu.rivals(N, D), args.only) if args.rivals else ():
        try:
            measure(name, partial(rival, make))
        except Exception as error:  # whatever other packages raise: ours are to be measured without them
            print(f"{name} {N}x{D} is not measured: {type(error).__name__}:", str(error).partition("\n")[0], flush=True)
        torch.cuda.empty_cache()
    return rows


def chosen(made: dict[str, Callable], only: str) -> list[tuple[str, Callable]]:
    """Those whose names have one of the parts, which commas separate."""
    return [(name, make) for name, make in made.items() if any(part in name for part in only.split(","))]


def line(row: dict) -> str:
    """For people."""
    shape = "x".join(map(str, row["shape"]))
    return (
        f"{row['kernel']:26s} {row['bits']:5.2f} b {shape} B={row['tokens']:3d} {row['us']:7.1f} us  cuBLAS {row['cublas_us']:6.1f}"
        f"  x{row['ratio']:4.2f}  floor {row['floor_us']:5.1f}  error {row['error']:.1e} ({row['fp16_error']:.1e})"
    ) + (not row["graph"]) * "  in a loop: no graph holds it"


def table(rows: list[dict]) -> str:
    """Markdown, one a shape: a line for each kernel; µs, and the ratio to cuBLAS, in a column for each number of tokens."""
    made = []
    tokens = list(dict.fromkeys(row["tokens"] for row in rows))
    for N, D in dict.fromkeys(tuple(row["shape"]) for row in rows):
        heads = [f"{N}×{D}", "bits", f"{tokens[0]} token{'s' * (tokens[0] > 1)}", *map(str, tokens[1:]), "floor"]
        made += ["", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        here = [row for row in rows if row["shape"] == [N, D]]
        for name in dict.fromkeys(row["kernel"] for row in here):
            same = {row["tokens"]: row for row in here if row["kernel"] == name}
            first = next(iter(same.values()))
            cells = [cell(same[B]) if B in same else "" for B in tokens]
            made.append(f"| {name} | {first['bits']:.2f} | {' | '.join(cells)} | {first['floor_us']:.1f} |")
    if not all(row["graph"] for row in rows):
        made += ["", "*: in a loop, with the host's time; no graph holds it"]
    return "\n".join(made[1:])


def cell(row: dict) -> str:
    us = f"{row['us']:.1f}" if row["us"] < 100 else f"{row['us']:,.0f}"
    ratio = f"{row['ratio']:.{1 if row['ratio'] >= 0.1 else 2}f}"
    return f"{us} ({ratio})" + "*" * (not row["graph"])


# --- a search for knobs ---


def choices(B: int) -> list[tuple[str, Knobs]]:
    made = []
    if B <= cuda.NARROW:
        for team, depth, tiles, run in itertools.product((2, 4, 8, 16), (2, 3), (1, 2), (1, 2, 4)):
            made.append(("narrow", Knobs(16, depth, team, tiles, run=run)))
        for warps, run in itertools.product((20, 24, 28), (1, 2)):
            made.append(("narrow", Knobs(warps, 2, 4, run=run)))
    else:
        for warps, depth, tiles, wgmma in itertools.product((8, 12, 16), (3, 4, 5), (1, 2, 3), (0, 1)):
            if warps * tiles <= 32:
                made.append(("wide", Knobs(warps, depth, 1, tiles, wgmma=wgmma)))
    return made


def plan(which: str, layout: Layout, B: int, k: Knobs) -> cuda.Launch:
    return (cuda.narrow_launch if which == "narrow" else cuda.wide_launch)(layout, B, False, k, cuda._card(0).room)


def _compile(job: tuple[tuple[str, ...], tuple[int, int]]) -> None:
    flags, capability = job
    nvrtc.cached((nvrtc.sources() / "product.cu").read_bytes(), capability, nvrtc.find_compiler(), flags)


def compile_all(wanted: set[tuple[str, ...]], capability: tuple[int, int]) -> None:
    """Into the cache, on all cores."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_compile, [(flags, capability) for flags in sorted(wanted)]))


def sweep(args: argparse.Namespace) -> list[dict]:
    """Times of every choice of knobs, the best first."""
    rows, jobs = [], []
    for N, D in args.shapes:
        for name, make in chosen(kernels(N, D), args.only):
            packed = cuda.pack(filled(make()))
            layout = Layout(*packed.how)
            seen = {}
            for B in args.tokens:
                for which, k in choices(B):
                    how = plan(which, layout, B, k)
                    seen.setdefault((B, which, how.flags), k)
            jobs.append((name, N, D, packed, layout, seen))
    compile_all({key[2] for job in jobs for key in job[-1]}, torch.cuda.get_device_capability())
    for name, N, D, packed, layout, seen in jobs:
        copies, times = copies_of(packed), {B: [] for B in args.tokens}
        for (B, which, _), k in seen.items():
            x, y = torch.randn(B, D, device="cuda").half(), torch.empty(B, N, device="cuda").half()
            run = getattr(cuda, which)
            try:
                us = microseconds([partial(run, x, p.parts, layout, None, y, k) for p in copies])
            except RuntimeError as error:
                print(name, B, which, k, error)
                continue
            times[B].append((us, which, k))
        for B, found in times.items():
            for us, which, k in sorted(found, key=lambda f: f[0]):
                rows.append({"kernel": name, "shape": [N, D], "tokens": B, "us": us, "which": which, **vars(k)})
            for us, which, k in sorted(found, key=lambda f: f[0])[:4]:
                print(f"{name:20s} {N}x{D} B={B:2d} {us:6.1f} {which} warps {k.warps} team {k.team} depth {k.depth} tiles {k.tiles} run {k.run} wgmma {k.wgmma}")  # fmt: skip
        del copies
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="parts of the kernels' names, with commas")
    parser.add_argument("--shape", default="", help="NxD instead of the standard shapes")
    parser.add_argument("--tokens", default="", help="tokens at once, with commas")
    parser.add_argument(
        "--rivals", action="store_true", help="beside aqlm, spqr_quant and gemlite, where they are installed"
    )
    printed = parser.add_mutually_exclusive_group()
    printed.add_argument("--sweep", action="store_true", help="search for the best sizes of launches")
    printed.add_argument("--table", action="store_true", help="Markdown, at the end")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        sys.exit("There is no NVIDIA GPU that torch can use.")
    args.shapes = [tuple(map(int, args.shape.split("x")))] if args.shape else SHAPES
    args.tokens = tuple(map(int, args.tokens.split(","))) if args.tokens else TOKENS
    with torch.no_grad():
        rows = (sweep if args.sweep else bench)(args)
    if args.table:
        print("\n" + table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
