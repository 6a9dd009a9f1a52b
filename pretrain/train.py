"""One loop for both stages: rows in, a checkpoint out; a killed run goes on where it stood. Knows rows; knows no text."""

from __future__ import annotations

import json
import math
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pretrain.model import Llama, Shape, document_mask
from pretrain.muon import optimizers
from pretrain.pack import Phase, Plan, Tokens, plan

LAST = "last.pt"
Batch = tuple[Tensor, Tensor, Tensor]  # inputs, targets, document numbers, each (B, T)


@dataclass(frozen=True)
class TrainConfig:
    """A stage. The schedule is warm-up, plateau, linear decay (WSD)."""

    T: int = 1024  # tokens a row
    rows: int = 256  # rows a step
    micro: int = 128  # rows at once
    lr: float = 3e-3
    floor: float = 0.1  # the last learning rate, as a share of lr
    warmup: int = 100  # steps
    decay: float = 0.3  # share of the steps
    weight_decay: float = 0.1
    seed: int = 1
    save_seconds: float = 60.0
    validate_every: int = 500  # steps
    documents: int = 1  # 1: no token sees another document; 0: plain causal attention
    compile: int = 1  # on a GPU


# Sources are token files; shares are of the tokens seen.
PRETRAIN = (
    (0.72, {"prose-wiki_*": 0.60, "mail-[0-9]*": 0.20, "prose-textbooks": 0.05, "prose-workplace": 0.04, "prose-dialogues": 0.05, "prose-novels": 0.06}),
    (0.28, {"prose-wiki_*": 0.32, "mail-[0-9]*": 0.45, "prose-textbooks": 0.05, "prose-workplace": 0.06, "prose-dialogues": 0.07, "prose-novels": 0.05}),
)  # fmt: skip
TUNE = ((1.0, {"items-[0-9]*": 0.84, "mail-[0-9]*": 0.08, "prose-*": 0.08}),)
RECIPES = {"pretrain": PRETRAIN, "tune": TUNE}
DEFAULTS = {
    "pretrain": TrainConfig(),
    "tune": TrainConfig(
        T=2048, rows=96, micro=48, lr=1e-3, floor=0.0, warmup=40, decay=0.9, weight_decay=0.05, validate_every=200
    ),
}


def train(
    stage: str,
    tokens: int,
    data: Path,
    out: Path,
    config: TrainConfig,
    shape: Shape,
    start: Path | None = None,
    stop_after: int | None = None,
) -> Llama:
    """Train `stage` ("pretrain" or "tune") on about `tokens` tokens into `out`; return the model.

    start: a checkpoint to take the weights from (not the optimiser). stop_after: leave after this step, as a kill would.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    out.mkdir(parents=True, exist_ok=True)
    phases = [Phase(int(share * tokens), dict(shares)) for share, shares in RECIPES[stage]]
    rows = plan(data, phases, config.T, config.seed)
    steps = len(rows) // config.rows
    model = Llama(shape).init_(torch.Generator().manual_seed(config.seed))
    if start:
        model.load_state_dict(load_weights(start))
    model.to(device)
    opts = optimizers(model, config.lr, config.weight_decay)
    first = _resume(out / LAST, model, opts)
    log = Log(out / "log.jsonl", {"stage": stage, "steps": steps, **asdict(config), **asdict(shape)})
    loss_of = _loss(model, device, config)
    checks = validation(data)
    saved = began = time.monotonic()
    logged = first - 1
    for step, batch in batches(rows, config, first, steps):
        rate = schedule(step, steps, config)
        loss = _step(loss_of, opts, batch, config.micro, rate * config.lr, device)
        if step % 20 == 0 or step == steps - 1:
            mean, now = loss.item(), time.monotonic()
            speed = int((step - logged) * config.rows * config.T / (now - began))
            log(step=step, loss=round(mean, 4), lr=round(rate * config.lr, 6), tokens_per_second=speed)
            logged, began = step, now
        last = step == steps - 1 or step + 1 == stop_after
        if last or time.monotonic() - saved > config.save_seconds:
            save(out / LAST, model, opts, step + 1)
            saved = time.monotonic()
        if step == steps - 1 or (step + 1) % config.validate_every == 0:
            log(step=step, **{name: round(bits_per_byte(model, t, config.T, device), 4) for name, t in checks.items()})
        if last:
            break
    return model


def schedule(step: int, steps: int, c: TrainConfig) -> float:
    """The learning rate as a share of its peak: warm-up, plateau, linear decay to `floor`."""
    decay = max(int(steps * c.decay), 1)
    left = (steps - step) / decay
    return min((step + 1) / max(c.warmup, 1), 1.0) * min(1.0, c.floor + (1 - c.floor) * left)


def batches(rows: Plan, c: TrainConfig, first: int, steps: int) -> Iterator[tuple[int, Batch]]:
    """(step, batch) from step `first` on, made ready by a thread."""
    ready: queue.Queue[tuple[int, Batch]] = queue.Queue(maxsize=8)

    def fill() -> None:
        for step in range(first, steps):
            ready.put((step, tuple(torch.from_numpy(a) for a in rows.rows(step * c.rows, c.rows))))  # type: ignore[arg-type]

    threading.Thread(target=fill, daemon=True).start()
    for _ in range(first, steps):
        yield ready.get()


def _loss(model: Llama, device: torch.device, c: TrainConfig):  # noqa: ANN202
    """(inputs, targets, documents) -> summed loss, in bf16 and compiled on a GPU."""
    flex = device.type == "cuda"
    forward = torch.compile(model, dynamic=False) if flex and c.compile else model

    def loss(x: Tensor, y: Tensor, docs: Tensor) -> Tensor:
        return forward(x, y, document_mask(docs, flex) if c.documents else None)

    return loss


def _step(
    loss_of, opts: Sequence[torch.optim.Optimizer], batch: Batch, micro: int, lr: float, device: torch.device
) -> Tensor:  # noqa: ANN001
    """One update; returns the mean loss in nats a target."""
    x, y, docs = (t.to(device, non_blocking=True) for t in batch)
    targets = (y >= 0).sum()
    total = torch.zeros((), device=device)
    for part in zip(x.split(micro), y.split(micro), docs.split(micro), strict=True):
        loss = loss_of(*part) / targets
        loss.backward()
        total += loss.detach()
    params = [p for opt in opts for group in opt.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    for opt in opts:
        for group in opt.param_groups:
            group["lr"] = lr
        opt.step()
        opt.zero_grad(set_to_none=True)
    return total


# --- checkpoints ----------------------------------------------------------------------------------------------------


def save(path: Path, model: Llama, opts: Sequence[torch.optim.Optimizer], step: int) -> None:
    """By temp + rename, so that a kill leaves the old checkpoint or the new one."""
    temp = path.with_suffix(".part")
    state = {
        "model": model.state_dict(),
        "optimizers": [o.state_dict() for o in opts],
        "step": step,
        "shape": asdict(model.shape),
    }
    torch.save(state, temp)
    temp.replace(path)


def _resume(path: Path, model: Llama, opts: Sequence[torch.optim.Optimizer]) -> int:
    """The step to go on from: 0 without a checkpoint."""
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True, map_location="cpu")
    model.load_state_dict(state["model"])
    for opt, saved in zip(opts, state["optimizers"], strict=True):
        opt.load_state_dict(saved)
    return int(state["step"])


def load_weights(path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint."""
    return torch.load(path, weights_only=True, map_location="cpu")["model"]


def load_model(path: Path) -> Llama:
    """The model of a checkpoint, on the CPU."""
    state = torch.load(path, weights_only=True, map_location="cpu")
    model = Llama(Shape(**state["shape"]))
    model.load_state_dict(state["model"])
    return model.eval()


# --- validation -----------------------------------------------------------------------------------------------------


def validation(data: Path, most: int = 1500) -> dict[str, Tokens]:
    """Mails and items kept aside, a fixed sample of each."""
    return {
        f"bits_per_byte_{kind}": _some(data / f"{kind}-validation.npz", most)
        for kind in ("mail", "items")
        if (data / f"{kind}-validation.npz").is_file()
    }


def _some(path: Path, most: int) -> Tokens:
    a = np.load(path)
    picked = np.random.default_rng(0).permutation(len(a["prompt"]))[:most]
    pieces = [a["ids"][a["start"][d] : a["start"][d + 1]] for d in picked]
    start = np.cumsum([0, *map(len, pieces)])
    return Tokens(np.concatenate(pieces), start, a["prompt"][picked], a["bytes"][picked])


@torch.no_grad()
def bits_per_byte(model: Llama, t: Tokens, T: int, device: torch.device, batch: int = 32) -> float:
    """Bits for each byte of text, the end mark included, each document by itself, cut at T tokens."""
    nats = total = 0.0
    order = np.argsort(np.diff(t.start))
    for chunk in np.array_split(order, math.ceil(len(order) / batch)):
        n = min(int(np.diff(t.start)[chunk].max()), T)
        x = torch.zeros(len(chunk), n, dtype=torch.long)
        y = torch.full((len(chunk), n), -100)
        for i, d in enumerate(chunk):
            ids = torch.from_numpy(t.ids[t.start[d] : t.start[d + 1]].astype(np.int64))[: n + 1]
            skip = max(int(t.prompt[d]), 1)
            x[i, : len(ids) - 1] = ids[:-1]
            y[i, skip - 1 : len(ids) - 1] = ids[skip:]
            total += float(t.bytes[d]) * min(1.0, T / (t.start[d + 1] - t.start[d]))
        nats += model(x.to(device), y.to(device)).item()
    return nats / math.log(2) / total


class Log:
    """JSON lines, on the screen and in a file."""

    def __init__(self, path: Path, head: dict[str, object]):
        self.path = path
        self(**head)

    def __call__(self, **row: object) -> None:
        line = json.dumps(row)
        print(line, flush=True)
        with self.path.open("a", encoding="utf-8") as f:
            f.write(line + "\n")
