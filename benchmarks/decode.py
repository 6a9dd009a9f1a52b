"""How fast drafts come, ours and others': `python -m benchmarks.decode --models 1B --codes "trellis 2,llama.cpp Q2_K"`.

Of the embedded model, and of Llama shapes of 1 and 3 billion weights with random codes (what they say is noise; what
they cost is not). Each is in a process of its own; all of one model and number of threads take turns, some tokens at a
time and in random order, so that what disturbs one disturbs all. Knows no kernel; what others do is in decode_rivals.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHAPES = {  # hidden, layers, heads, kv heads, head size, ffn, vocabulary
    "1B": (2048, 16, 32, 8, 64, 8192, 128256),
    "3B": (3072, 28, 24, 8, 128, 8192, 128256),
}
CODES = ("trellis 2", "trellis 3", "additive 2x8", "additive 4x4", "grid 2", "grid 3", "grid 4")
TORCH, LLAMA, STORED = (
    "torch",
    "llama.cpp ",
    "8-bit rows",
)  # beside CODES; the first and the last of the embedded model alone
TURN = 8  # tokens that one writes before the next takes its turn


class RandomWeights:
    """What compress.runtime builds a model from, with random codes of one kind; both ends of the vocabulary have 4 bits."""

    def __init__(self, shape: dict[str, Any], codes: str) -> None:
        import numpy as np

        self.shape, self.codes, self.random = shape, codes, np.random.default_rng(0)
        self.table = None

    def has(self, name: str) -> bool:
        return "_proj" in name and "qkv" not in name and "gate_up" not in name

    def numbers(self, name: str, needed: bool = True) -> Any:
        import numpy as np

        return np.ones(self.shape["hidden"], np.float32) if needed else None

    def linear(self, name: str) -> Any:
        s, leaf = self.shape, name.rsplit(".", 1)[-1]
        if leaf in ("embed_tokens", "lm_head"):
            self.table = self.table or self.made("grid 4", s["vocab"], s["hidden"])
            return self.table
        sizes = {
            "q_proj": (s["heads"] * s["head_dim"], s["hidden"]),
            "k_proj": (s["kv_heads"] * s["head_dim"], s["hidden"]),
            "v_proj": (s["kv_heads"] * s["head_dim"], s["hidden"]),
            "o_proj": (s["hidden"], s["heads"] * s["head_dim"]),
            "gate_proj": (s["ffn"], s["hidden"]),
            "up_proj": (s["ffn"], s["hidden"]),
            "down_proj": (s["hidden"], s["ffn"]),
        }
        return self.made(self.codes, *sizes[leaf])

    def made(self, codes: str, N: int, D: int) -> Any:
        """A weight whose rows have about unit length, as trained ones do."""
        import numpy as np

        from compress import native

        kind, size = codes.split()
        spec: dict[str, Any] = {
            "shape": [N, D],
            "decode": {"kind": kind, "padded": [N, D]},
            "scale": {"kind": "real", "groups": 1},
        }
        spec["transform"] = {"in_block": 1, "out_block": 1, "permuted": False}
        arrays = {"scale.values": np.full((N, 1), D**-0.5, np.float16)}
        if kind == "grid":
            spec["decode"]["bits"], spec["scale"]["groups"] = int(size), D // 128
            arrays["scale.values"] = np.full((N, D // 128), D**-0.5 / 2 ** (int(size) - 1), np.float16)
            shape = N, D * int(size) // 8
        elif kind == "additive":
            books, bits = map(int, size.split("x"))
            spec["decode"] |= {"books": books, "bits": bits, "group": 8, "int8": False}
            words = self.random.standard_normal((books, 1 << bits, 8)) * books**-0.5
            arrays["decode.codebooks"] = words.astype(np.float16)
            shape = N, D * books * bits // 64
        else:
            spec["decode"] |= {"step": int(size), "window": 8}
            arrays["decode.lut"] = self.random.standard_normal(256).astype(np.float16)
            spec["transform"] |= {"in_block": min(D & -D, 1024), "out_block": min(N & -N, 1024)}
            arrays |= {
                f"transform.{side}_signs": self.random.integers(0, 256, n // 8, np.uint8)
                for side, n in (("in", D), ("out", N))
            }
            shape = N // 16, (16 * D * int(size) + 8 - int(size) + 7) // 8
        arrays["decode.codes"] = self.random.integers(0, 256, shape, np.uint8)
        return native.from_spec(spec, arrays, exact=False)  # as drafts load models


def config_of(model: str) -> dict[str, Any]:
    """A transformers config."""
    from compress.runtime import read_config
    from panza.models import EMBEDDED

    if model == "base":
        return read_config(EMBEDDED)
    hidden, layers, heads, kv_heads, head_dim, ffn, vocab = SHAPES[model]
    return {
        "model_type": "llama", "vocab_size": vocab, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": head_dim, "intermediate_size": ffn, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    }  # fmt: skip


class Ours:
    """The native decoder. codes: one of CODES, STORED, or a directory with the embedded model compressed."""

    def __init__(self, model: str, codes: str, threads: int) -> None:
        from compress import native, runtime
        from panza.models import EMBEDDED

        if codes in CODES:
            config = config_of(model)
            shape = runtime._shape(config, config["max_position_embeddings"])
            made = runtime._build(shape, RandomWeights(shape, codes), config)
            self.runtime = runtime.Runtime(made, shape["context"], threads)
        else:
            self.runtime = runtime.load(EMBEDDED if codes == STORED else Path(codes), threads=threads, exact=False)
        self.session, self.greedy = self.runtime.session, native._kernels.Sampling()
        self.threads, self.bytes = threads, self.runtime.model.bytes

    def read(self, ids: list[int]) -> None:
        """Forget everything, read these and choose the token after them."""
        self.session.truncate(0)
        self.session.prompt(ids)
        self.token = self.session.sample(self.greedy)

    def steps(self, count: int) -> list[float]:
        """Seconds of each of so many tokens more."""
        seconds = []
        for _ in range(count):
            begun = time.perf_counter()
            self.session.read([self.token])
            self.token = self.session.sample(self.greedy)
            seconds.append(time.perf_counter() - begun)
        return seconds

    def report(self) -> dict[str, float]:
        """What reading the weights alone would allow."""
        from panza.doctor import read_bandwidth

        limit = read_bandwidth(threads=self.threads) * 1e9 / self.bytes
        return {"megabytes_per_token": round(self.bytes / 1e6, 1), "limit_tokens_per_s": round(limit, 1)}


def resident() -> float:
    """Megabytes of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
    return pages * resource.getpagesize() / 1e6


def serve(model: str, codes: str, threads: int, file: str) -> None:
    """Answer `Worker.ask`: a JSON list on a line of standard input, the answer on a line of standard output."""
    bare = resident()
    engine: Any
    if codes == TORCH:
        from benchmarks.decode_rivals import HuggingFace

        engine = HuggingFace(threads)
    elif codes.startswith(LLAMA):
        from benchmarks.decode_rivals import LlamaCpp

        engine = LlamaCpp(Path(file), threads)
    else:
        engine = Ours(model, codes, threads)
    for line in sys.stdin:
        what, *numbers = json.loads(line)
        begun = time.perf_counter()
        if what == "read":
            engine.read([i % 100 for i in range(*numbers)])
            answer = time.perf_counter() - begun
        elif what == "steps":
            answer = engine.steps(*numbers)
        else:
            answer = {"megabytes": round(resident() - bare)}
            answer |= engine.report()
        print(json.dumps(answer), flush=True)


class Worker:
    """One of the processes, and what it took: by length of prompt, seconds to the first token and of turns' tokens."""

    def __init__(self, model: str, codes: str, threads: int, file: str) -> None:
        self.row: dict[str, Any] = {"model": model, "codes": codes, "threads": threads}
        self.first: dict[int, list[float]] = {}
        self.turns: dict[int, list[float]] = {}
        command = [sys.executable, "-m", "benchmarks.decode", "--serve", model, codes, str(threads), file]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ask("read", 8)
        self.ask("steps", 2)

    def ask(self, *what: Any) -> Any:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def read(self, prompt: int) -> None:
        self.first.setdefault(prompt, []).append(self.ask("read", prompt))

    def turn(self, prompt: int) -> None:
        self.turns.setdefault(prompt, []).append(statistics.median(self.ask("steps", TURN)))

    def made(self, others: list[Worker]) -> dict[str, Any]:
        """The report's row: medians, and those of the ratios to each of the others' turns."""
        for prompt, turns in self.turns.items():
            self.row[f"first_token_s_{prompt}"] = round(statistics.median(self.first[prompt]), 3)
            self.row[f"tokens_per_s_{prompt}"] = round(1 / statistics.median(turns), 1)
            for other in others:
                pairs = zip(other.turns[prompt], turns, strict=True)
                self.row[f"times_{other.row['codes']}_{prompt}"] = round(statistics.median(a / b for a, b in pairs), 2)
        return self.row | self.ask("report")

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes beside that compute all the time."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()


def compare(model: str, codes: list[str], threads: int, a: argparse.Namespace, files: dict[str, str]) -> None:
    """Print a row for each of the codes."""
    workers = [Worker(model, c, threads, files.get(c, "")) for c in codes]
    with busy(a.busy):
        for prompt in a.prompts:
            for _ in range(a.rounds):
                for worker in random.sample(workers, len(workers)):
                    worker.read(prompt)
                for _ in range(a.answer // TURN):
                    for worker in random.sample(workers, len(workers)):
                        worker.turn(prompt)
    rivals = [w for w in workers if w.row["codes"] == TORCH or w.row["codes"].startswith(LLAMA)]
    for worker in workers:
        row = worker.made([] if worker in rivals else rivals) | ({"busy": a.busy} if a.busy else {})
        worker.end()
        print(json.dumps(row), flush=True)


def usual(model: str) -> list[str]:
    """What is measured of a model if nobody says: what is installed."""
    llama = find_spec("llama_cpp") is not None
    if model == "base":
        return [STORED, "grid 3", TORCH] + ["llama.cpp Q3_K"] * llama
    return [*CODES, *(f"{LLAMA}{kind}" for kind in ("Q2_K", "IQ2_XXS") if llama)]


def main() -> None:
    def listed(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[int]:
        return [int(n) for n in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=listed, default=["base", "1B"], help="base, 1B, 3B, with commas")
    parser.add_argument(
        "--codes", type=listed, help=f"{', '.join(CODES)}, llama.cpp TYPE; of base {STORED}, {TORCH}, DIRECTORY"
    )
    parser.add_argument("--threads", type=numbers, default=[1, 2])
    parser.add_argument("--prompts", type=numbers, default=[512], help="tokens of the prompts, with commas")
    parser.add_argument("--answer", type=int, default=64, help="tokens that are timed after a prompt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, default=0, help="other processes that compute all the time")
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.serve:
        model, codes, threads, file = a.serve
        return serve(model, codes, int(threads), file)
    with tempfile.TemporaryDirectory() as folder:
        for model in a.models:
            codes, files = a.codes or usual(model), {}
            for name in (c for c in codes if c.startswith(LLAMA)):
                from benchmarks.decode_rivals import write_gguf

                file = Path(folder) / f"{model} {name}.gguf"
                write_gguf(file, config_of(model), name.removeprefix(LLAMA))
                files[name] = str(file)
            for threads in a.threads:
                compare(model, codes, threads, a, files)


if __name__ == "__main__":
    main()
