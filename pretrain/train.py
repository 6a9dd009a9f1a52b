"""One loop for both stages: rows in, a checkpoint out; a killed run goes on where it stood. Knows rows; knows no text.

Several processes started by torchrun share a run: each takes its part of every step's rows.
"""

from __future__ import annotations

import json
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.model import Extra, Llama, Shape, document_mask
from pretrain.muon import optimizers
from pretrain.pack import Phase, Plan, Tokens, plan

LAST = "last.pt"
Batch = tuple[Tensor, Tensor, Tensor]  # inputs, targets, document numbers, each (B, T)
TIMED = 12  # steps between two looks at the clock, before `minutes` decides how many steps there will be


@dataclass(frozen=True)
class TrainConfig:
    """A stage. The schedule is warm-up, plateau, linear decay (WSD)."""

    recipe: str = "pretrain"  # a key of RECIPES
    tokens: float = 7.2e8
    minutes: float = 0.0  # if given, the run is shortened to end within them, compilation included
    T: int = 1024  # tokens a row
    rows: int = 256  # rows a step, over all processes
    micro: int = 64  # rows at once in a process
    lr: float = 3e-3
    floor: float = 0.1  # the last learning rate, as a share of lr
    warmup: int = 100  # steps
    decay: float = 0.3  # share of the steps
    weight_decay: float = 0.1  # of the matrices
    embed_decay: float = 0.0  # of the embeddings
    dropout: float = 0.0
    z_loss: float = 0.0
    kurtosis: float = 0.0
    bits: int = 0  # quantisation-aware in the last steps: the width the matrices are rounded to
    rounded: float = 0.1  # share of the steps that `bits` holds for
    written: float = 0.6  # share of the plain mail that is as its author wrote it, wraps and double spaces included
    average: float = 0.0  # decay of the running average of the weights, e.g. 0.99; 0: the last weights are the model
    taught: float = 0.5  # share of the loss that teachers take, if there are any
    seed: int = 1
    save_seconds: float = 60.0
    validate_every: int = 500  # steps; 0: at the end alone
    documents: int = 1  # 1: no token sees another document; 0: plain causal attention
    compile: int = 1  # on a GPU


# Sources are token files; shares are of the tokens seen. Each recipe is phases: (share of the run, sources). CLEAN_MAIL
# stands for all plain mail: `phases_of` divides it.
CLEAN_MAIL, WRITTEN_MAIL = "mail-[0-9]*", "written-[0-9]*"
_PLATEAU = {"prose-wiki_*": 0.52, "mail-[0-9]*": 0.26, "prose-textbooks*": 0.05, "prose-workplace*": 0.04, "prose-dialogues*": 0.05, "prose-novels*": 0.08}  # fmt: skip
_ANNEAL = {"prose-wiki_*": 0.20, "mail-[0-9]*": 0.58, "prose-textbooks*": 0.04, "prose-workplace*": 0.05, "prose-dialogues*": 0.07, "prose-novels*": 0.06}  # fmt: skip
_EARLY_ITEMS = {"prose-wiki_*": 0.16, "mail-[0-9]*": 0.42, "items-[0-9]*": 0.26, "prose-textbooks*": 0.03, "prose-workplace*": 0.03, "prose-dialogues*": 0.05, "prose-novels*": 0.05}  # fmt: skip
RECIPES: dict[str, tuple[tuple[float, dict[str, float]], ...]] = {
    "pretrain": ((0.70, _PLATEAU), (0.30, _ANNEAL)),
    "even": ((1.0, {**_PLATEAU, "mail-[0-9]*": 0.34, "prose-wiki_*": 0.44}),),
    "mail": ((0.70, {**_PLATEAU, "mail-[0-9]*": 0.40, "prose-wiki_*": 0.38}), (0.30, {**_ANNEAL, "mail-[0-9]*": 0.75, "prose-wiki_*": 0.03})),
    # For runs that read all prose eight times: less mail, which is learnt by heart first.
    "long": (
        (0.70, {"prose-wiki_*": 0.64, "mail-[0-9]*": 0.15, "prose-textbooks*": 0.05, "prose-workplace*": 0.03, "prose-dialogues*": 0.04, "prose-novels*": 0.09}),
        (0.30, {"prose-wiki_*": 0.34, "mail-[0-9]*": 0.42, "prose-textbooks*": 0.04, "prose-workplace*": 0.05, "prose-dialogues*": 0.06, "prose-novels*": 0.09}),
    ),
    "early-items": ((0.70, _PLATEAU), (0.30, _EARLY_ITEMS)),
    "tune": ((1.0, {"items-[0-9]*": 0.78, "mail-[0-9]*": 0.14, "prose-*": 0.08}),),
    "tune-items": ((1.0, {"items-[0-9]*": 0.92, "mail-[0-9]*": 0.08}),),
}  # fmt: skip
DEFAULTS = {
    "pretrain": TrainConfig(),
    "tune": TrainConfig(
        recipe="tune", tokens=1.6e8, T=2048, rows=96, micro=32, lr=1e-3, floor=0.0, warmup=40, decay=0.9,
        weight_decay=0.05, validate_every=200,
    ),
}  # fmt: skip


def phases_of(c: TrainConfig) -> list[Phase]:
    """The recipe's phases, plain mail divided between its two forms."""
    phases = []
    for part, shares in RECIPES[c.recipe]:
        mail = shares[CLEAN_MAIL]
        divided = {**shares, CLEAN_MAIL: mail * (1 - c.written), WRITTEN_MAIL: mail * c.written}
        phases.append(Phase(int(part * c.tokens), {name: share for name, share in divided.items() if share}))
    return phases


@dataclass(frozen=True)
class Crew:
    """The processes of a run, and where this one computes."""

    device: torch.device
    rank: int = 0
    world: int = 1

    def sum_(self, t: Tensor) -> Tensor:
        """The sum of `t` over the processes, in place."""
        if self.world > 1:
            dist.all_reduce(t)
        return t


def crew() -> Crew:
    """This process's part: torchrun's environment says which; without it, it is alone."""
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if gpu else "gloo")
    return Crew(device, rank, world)


def train(
    config: TrainConfig,
    data: Path,
    out: Path,
    shape: Shape,
    start: Path | None = None,
    teachers: Sequence[Path] = (),
    stop_after: int | None = None,
) -> Llama:
    """Train on about `config.tokens` tokens into `out`; return the model (the average, if the config keeps one).

    start: a checkpoint to take the weights from (not the optimiser). teachers: checkpoints of the same vocabulary,
    whose mean prediction the model learns to make. stop_after: leave after this step, as a kill would.
    """
    c, us, began = config, crew(), time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    phases = phases_of(c)
    rows = plan(data, phases, c.T, c.seed)
    model = Llama(shape).init_(torch.Generator().manual_seed(c.seed))
    if start:
        model.load_state_dict(load_weights(start))
    model.to(us.device).train()
    torch.manual_seed(c.seed + us.rank)  # of dropout
    state = State(model, optimizers(model, c.lr, c.weight_decay, c.embed_decay), c.average, len(rows) // c.rows)
    state.resume(out / LAST)
    loss_of, teach = _loss(model, us.device, c), _teacher([load_model(t).to(us.device) for t in teachers], us.device, c)
    log = Log(out / "log.jsonl", us.rank == 0)
    log(steps=state.steps, step=state.step, world=us.world, **asdict(c), **asdict(shape))
    checks = validation(data) if us.rank == 0 else {}
    clock = Clock(c.minutes, began)
    saved = looked = time.monotonic()
    feed = batches(rows, c, state, us)
    while state.step < state.steps:
        step, late = state.step, state.step >= state.steps * (1 - c.rounded)
        extra = Extra(c.dropout, c.z_loss, c.kurtosis, c.bits if late else 0)
        if extra != model.extra:  # a new object would compile anew
            model.train_with_(extra)
        rate = schedule(step, state.steps, c)
        loss = _step(loss_of, teach, state, next(feed), c, rate * c.lr, us)
        state.step += 1
        state.steps = clock.steps_left(state, us) or state.steps
        last = state.step == state.steps or state.step == stop_after
        if step % 20 == 0 or last:
            mean, now = us.sum_(loss).item(), time.monotonic()
            speed = int((20 if step % 20 == 0 and step else step % 20 or 1) * c.rows * c.T / (now - looked))
            log(step=step, loss=round(mean, 4), lr=round(rate * c.lr, 6), tokens_per_second=speed)
            looked = now
        if us.rank == 0 and (last or time.monotonic() - saved > c.save_seconds):
            state.save(out / LAST)
            saved = time.monotonic()
        if us.rank == 0 and (state.step == state.steps or (c.validate_every and state.step % c.validate_every == 0)):
            best = state.averaged()
            log(step=step, **{name: round(bits_per_byte(best, t, c.T, us.device), 4) for name, t in checks.items()})
        if last:
            break
    return state.averaged()


class State:
    """All that a resumed run needs: weights, optimisers, the running average, the step and how many there are."""

    def __init__(self, model: Llama, opts: Sequence[torch.optim.Optimizer], average: float, steps: int):
        self.model, self.opts, self.decay, self.step, self.steps = model, opts, average, 0, steps
        self.mean = [p.detach().clone() for p in model.parameters()] if average else []

    def average_(self) -> None:
        """Take the weights into the average, which forgets faster while the run is young."""
        if self.mean:
            forget = 1 - min(self.decay, self.step / (self.step + 10))
            torch._foreach_lerp_(self.mean, [p.detach() for p in self.model.parameters()], forget)

    def averaged(self) -> Llama:
        """The model that counts, in the form it had: the average if one is kept."""
        if not self.mean:
            return self.model
        twin = Llama(self.model.shape).to(self.mean[0].device)
        for p, mean in zip(twin.parameters(), self.mean, strict=True):
            p.data.copy_(mean)
        return twin

    def save(self, path: Path) -> None:
        """By temp + rename, so that a kill leaves the old checkpoint or the new one."""
        temp = path.with_suffix(".part")
        state = {
            "model": self.averaged().state_dict(),
            "weights": self.model.state_dict() if self.mean else None,
            "optimizers": [o.state_dict() for o in self.opts],
            "step": self.step,
            "steps": self.steps,
            "shape": asdict(self.model.shape),
        }
        torch.save(state, temp)
        temp.replace(path)

    def resume(self, path: Path) -> None:
        """Go on from `path`, if it is there."""
        if not path.is_file():
            return
        state = torch.load(path, weights_only=True, map_location="cpu")
        self.model.load_state_dict(state["weights"] or state["model"])
        for opt, saved in zip(self.opts, state["optimizers"], strict=True):
            opt.load_state_dict(saved)
        for mean, saved in zip(self.mean, state["model"].values(), strict=True) if self.mean else ():
            mean.copy_(saved)
        self.step, self.steps = int(state["step"]), int(state["steps"])


class Clock:
    """Shortens a run to `minutes`, once some steps after compilation have told how long one takes."""

    def __init__(self, minutes: float, began: float):
        self.minutes, self.began, self.mark, self.count = minutes, began, 0.0, 0

    def steps_left(self, state: State, us: Crew) -> int:
        """The number of steps the whole run shall have, told once; 0 otherwise."""
        if not self.minutes:
            return 0
        self.count += 1
        if self.count == TIMED:
            self.mark = self._now(us)
        if self.count != 2 * TIMED:
            return 0
        now = self._now(us)
        fit = (self.minutes * 60 - (now - self.began)) / ((now - self.mark) / TIMED)
        both = torch.tensor([float(fit)], device=us.device)
        return min(state.steps, state.step + max(int(us.sum_(both).item() / us.world), 1))

    def _now(self, us: Crew) -> float:
        if us.device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic()


def schedule(step: int, steps: int, c: TrainConfig) -> float:
    """The learning rate as a share of its peak: warm-up, plateau, linear decay to `floor`."""
    decay = max(int(steps * c.decay), 1)
    left = (steps - step) / decay
    return min((step + 1) / max(c.warmup, 1), 1.0) * min(1.0, c.floor + (1 - c.floor) * left)


def batches(rows: Plan, c: TrainConfig, state: State, us: Crew) -> Iterator[Batch]:
    """This process's rows of each step from the state's on, made ready by a thread.

    A shortened run takes its rows evenly from the whole plan, so that it sees every phase.
    """
    ready: queue.Queue[Batch] = queue.Queue(maxsize=6)
    each = c.rows // us.world
    assert each * us.world == c.rows, f"{c.rows} rows cannot be shared by {us.world} processes"
    whole = len(rows) // c.rows
    first, stopped = state.step, threading.Event()

    def fill() -> None:
        step = first
        while not stopped.is_set() and step < state.steps:
            at = step * whole // state.steps * c.rows + us.rank * each
            ready.put(tuple(torch.from_numpy(a) for a in rows.rows(at, each)))  # type: ignore[arg-type]
            step += 1

    threading.Thread(target=fill, daemon=True).start()
    try:
        while True:
            yield ready.get()
    finally:
        stopped.set()


def _loss(model: Llama, device: torch.device, c: TrainConfig) -> Callable[..., Tensor]:
    """(inputs, targets, mask, taught, share) -> summed loss, in bf16 and compiled on a GPU."""
    return torch.compile(model, dynamic=False) if device.type == "cuda" and c.compile else model


def _teacher(models: Sequence[Llama], device: torch.device, c: TrainConfig) -> Callable[..., Tensor] | None:
    """(inputs, mask) -> the mean of what the models expect, (B, T, vocab); None without models."""
    if not models:
        return None
    each = [m.eval().requires_grad_(False).probabilities for m in models]
    if device.type == "cuda" and c.compile:
        each = [torch.compile(f, dynamic=False) for f in each]

    @torch.no_grad()
    def mean(x: Tensor, mask: object) -> Tensor:
        total = each[0](x, mask)
        for f in each[1:]:
            total = total + f(x, mask)
        return total / len(each)

    return mean


def _step(
    loss_of: Callable[..., Tensor],
    teach: Callable[..., Tensor] | None,
    state: State,
    batch: Batch,
    c: TrainConfig,
    lr: float,
    us: Crew,
) -> Tensor:
    """One update; returns this process's part of the mean loss in nats a target."""
    x, y, docs = (t.to(us.device, non_blocking=True) for t in batch)
    targets = us.sum_((y >= 0).sum().float())
    total = torch.zeros((), device=us.device)
    for a, b, d in zip(x.split(c.micro), y.split(c.micro), docs.split(c.micro), strict=True):
        mask = document_mask(d, us.device.type == "cuda") if c.documents else None
        taught = teach(a, mask) if teach else None
        loss = loss_of(a, b, mask, taught, c.taught if teach else 0.0) / targets
        loss.backward()
        total += loss.detach()
    params = [p for opt in state.opts for group in opt.param_groups for p in group["params"]]
    _sum_gradients(params, us)
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    for opt in state.opts:
        for group in opt.param_groups:
            group["lr"] = lr
        opt.step()
        opt.zero_grad(set_to_none=True)
    state.average_()
    return total


def _sum_gradients(params: Sequence[Tensor], us: Crew) -> None:
    """Gradients summed over the processes, as one message."""
    if us.world == 1:
        return
    grads = [p.grad for p in params]
    flat = us.sum_(torch.cat([g.flatten() for g in grads]))
    torch._foreach_copy_(
        grads, [f.view_as(g) for f, g in zip(flat.split([g.numel() for g in grads]), grads, strict=True)]
    )


# --- checkpoints ----------------------------------------------------------------------------------------------------


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
        for kind in ("written", "mail", "items")
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
    was, extra = model.training, model.extra
    model.eval().train_with_(Extra())
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
    model.train(was).train_with_(extra)
    return nats / math.log(2) / total


class Log:
    """JSON lines, on the screen and in a file; of the first process alone."""

    def __init__(self, path: Path, speaks: bool = True):
        self.path, self.speaks = path, speaks

    def __call__(self, **row: object) -> None:
        if not self.speaks:
            return
        line = json.dumps(row)
        print(line, flush=True)
        with self.path.open("a", encoding="utf-8") as f:
            f.write(line + "\n")
