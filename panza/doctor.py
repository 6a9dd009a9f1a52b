"""What this computer gives a draft: instruction set, threads, memory, tokens a second, and what limits them."""

from __future__ import annotations

import platform
import statistics
import time
from dataclasses import dataclass
from typing import Any

from panza.models import Model, Sampling

SPAN = 512 << 20  # bytes that the bandwidth is measured over: more than most caches hold
TOKENS = 64  # of a draft that is timed
MEMORY_BOUND = 0.7  # of the bandwidth of plain sums, from which on a faster kernel would gain little
PROMPT = "Write a long mail to Anna about everything that happened at the review on Thursday, in many words."


@dataclass(frozen=True, slots=True)
class Report:
    """One computer with one model. Numbers that could not be measured are None."""

    machine: str
    python: str
    instruction_set: str  # of the native kernels in use; "" without them
    instruction_sets: list[str]  # that this computer runs, of those that are built
    threads: int
    gb_per_s: float | None  # of memory, by reading with all threads
    model: str
    backend: str
    why_not_native: str
    megabytes_per_token: float | None  # of weights that one token reads
    prompt_tokens_per_s: float
    tokens_per_s: float
    limit_tokens_per_s: float | None  # if memory were the only limit, each token read for itself
    passes_per_s: float | None  # tokens read one by one, without guesses

    def sentences(self) -> str:
        """For the terminal."""
        lines = [f"Computer      {self.machine}, Python {self.python}, {self.threads} threads"]
        if self.instruction_set:
            others = ", ".join(n for n in self.instruction_sets if n != self.instruction_set)
            lines.append(f"Kernels       {self.instruction_set} (also {others}; PANZA_ISA chooses)")
            lines.append(f"Memory        {self.gb_per_s:.1f} GB/s read")
        else:
            lines.append("Kernels       none: Panza was installed without a C++ compiler")
        lines.append(f"Model         {self.model} on the {self.backend} backend")
        if self.why_not_native:
            lines.append(f"              not native: {self.why_not_native}")
        lines.append(
            f"Drafting      {self.tokens_per_s:.0f} tokens/s; reads a prompt at {self.prompt_tokens_per_s:.0f} tokens/s"
        )
        if self.limit_tokens_per_s and self.passes_per_s:
            share = self.passes_per_s / self.limit_tokens_per_s
            lines.append(
                f"Limit         {self.limit_tokens_per_s:.0f} tokens/s: a token reads {self.megabytes_per_token:.1f} MB of weights"
            )
            lines.append(
                f"              One by one {self.passes_per_s:.0f} tokens/s, {100 * share:.0f} % of that: {self.limited_by} limits them"
            )
        return "\n".join(lines)

    @property
    def limited_by(self) -> str:
        """Memory where the weights come nearly as fast as it gives them, else arithmetic; "" if that was not measured."""
        if not self.limit_tokens_per_s or not self.passes_per_s:
            return ""
        return "memory" if self.passes_per_s > MEMORY_BOUND * self.limit_tokens_per_s else "arithmetic"


def examine(model: Model, why_not_native: str) -> Report:
    """Measure for some seconds. Nothing of the user's is read."""
    from compress import native

    kernels = native._kernels if native.available() else None
    runtime = getattr(model, "runtime", None)
    bandwidth = read_bandwidth() if kernels else None
    weights = runtime.model.bytes if runtime else None
    prompt_speed, speed = speeds(model)
    return Report(
        machine=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        instruction_set=kernels.isa() if kernels else "",
        instruction_sets=kernels.isas() if kernels else [],
        threads=native.cores(),
        gb_per_s=bandwidth,
        model=model.name,
        backend=model.backend,
        why_not_native=why_not_native,
        megabytes_per_token=weights / 1e6 if weights else None,
        prompt_tokens_per_s=prompt_speed,
        tokens_per_s=speed,
        limit_tokens_per_s=bandwidth * 1e9 / weights if weights and bandwidth else None,
        passes_per_s=pass_speed(runtime) if runtime else None,
    )


def read_bandwidth(span: int = 0, times: int = 5, threads: int = 0) -> float:
    """GB/s of plain sums over `span` bytes (0: SPAN) by so many threads (0: all), the median of some."""
    import numpy as np

    from compress import native

    span = span or SPAN
    words, pool, seconds = np.ones(span // 8, np.uint64), native.pool(threads), []
    for _ in range(times):
        begun = time.perf_counter()
        native._kernels.sum(words, pool)
        seconds.append(time.perf_counter() - begun)
    return span / statistics.median(seconds) / 1e9


def pass_speed(runtime: Any) -> float:
    """Tokens a second, each read by itself behind those of the last draft; the median."""
    session, seconds = runtime.session, []
    session.truncate(runtime.context - TOKENS)
    for _ in range(TOKENS):
        begun = time.perf_counter()
        session.read([0])
        seconds.append(time.perf_counter() - begun)
    return 1 / statistics.median(seconds)


def speeds(model: Any) -> tuple[float, float]:
    """(tokens of the prompt, tokens of the answer) a second, after one unmeasured draft."""
    for text in ("Say yes.", PROMPT):
        chat = [{"role": "system", "content": "You write mail."}, {"role": "user", "content": text}]
        begun, first, count = time.perf_counter(), 0.0, 0
        for _ in model.generate(chat, Sampling(max_tokens=TOKENS), lambda: False):
            first = first or time.perf_counter()
            count += 1
        ended = time.perf_counter()
    return len(model.encode(chat)) / max(first - begun, 1e-9), max(count - 1, 0) / max(ended - first, 1e-9)
