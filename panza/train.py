"""Fine-tune an adapter on playback pairs. Knows tensors, batches and checkpoints; knows no mail.

The loss counts the mail's tokens alone. Training stops when the validation loss stops falling; the held-out pairs
are only reported on. A killed run goes on from its last checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from panza import adapters
from panza.dataset import Encoded
from panza.home import write_json
from panza.types import Progress, UserError, silent


@dataclass(frozen=True)
class TrainConfig:
    """LoRA fine-tuning. The defaults suit the embedded model and a few hundred mails."""

    rank: int = field(default=16, metadata={"help": "LoRA rank"})
    alpha: int = field(default=32, metadata={"help": "LoRA scale is alpha / rank"})
    dropout: float = field(default=0.0, metadata={"help": "dropout before the LoRA factors; above 0 it is slower"})
    lr: float = field(default=1e-3, metadata={"help": "peak learning rate; about 2e-4 for models over 1 B parameters"})
    epochs: int = field(
        default=2, metadata={"help": "most passes over the mails; stops earlier when validation loss rises"}
    )
    batch_tokens: int = field(default=2000, metadata={"help": "tokens of a batch, padding included"})
    patience: int = field(default=1, metadata={"help": "epochs without a better validation loss before it stops"})
    warmup: float = field(default=0.06, metadata={"help": "share of the steps over which the learning rate rises"})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW weight decay"})
    most_tokens: int = field(default=640, metadata={"help": "tokens of a prompt with its mail"})
    raft: float = field(default=0.5, metadata={"help": "probability that a training prompt holds retrieved mails"})
    lengths: float = field(default=0.25, metadata={"help": "probability that a training prompt names the length"})
    heldout: float = field(
        default=0.2, metadata={"help": "share of the pairs, the latest threads, kept for the report"}
    )
    validation: float = field(default=0.1, metadata={"help": "share of the pairs that decides when to stop"})
    seed: int = field(default=0, metadata={"help": "seed of the factors, of the order and of the prompts"})

    def __post_init__(self) -> None:
        for name in ("rank", "alpha", "lr", "epochs", "batch_tokens", "patience", "most_tokens"):
            if getattr(self, name) <= 0:
                raise UserError(
                    f"--{name.replace('_', '-')} {getattr(self, name)} is too small: give a number above 0."
                )
        for name in ("dropout", "warmup", "raft", "lengths", "heldout", "validation"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} {getattr(self, name)} is no share: give a number from 0 to 1.")
        if self.heldout + self.validation > 0.9:
            raise UserError(
                f"--heldout {self.heldout} and --validation {self.validation} leave too little: give 0.9 or less."
            )


@dataclass(frozen=True, slots=True)
class Parts:
    """What to learn from, what decides when to stop, what is only reported on (dataset.split)."""

    train: Sequence[Encoded]
    validation: Sequence[Encoded]
    heldout: Sequence[Encoded]


def train(
    net: Any,
    parts: Parts,
    folder: Path,
    config: TrainConfig,
    about: Mapping[str, Any],
    progress: Progress = silent,
    began: float | None = None,
) -> dict[str, Any]:
    """Train LoRA factors on `net`; the best by validation loss go to `folder`, with report.json beside them.

    Returns the report: `about`, counts, losses (mean nats per answer token; None where there were no mails to take them
    on), seconds from `began` (time.monotonic()) or the call on, stopped runs included, and the settings. `folder` is
    replaced only when all is done; until then all lies in `<folder>.part`. Without validation mails it runs all epochs.
    """
    import torch

    if not parts.train:
        raise UserError("There are no mails to train on: import sent mail and run `panza playback` first.")
    stopping = parts.validation or parts.train
    torch.manual_seed(config.seed)
    about = {**about, "base_hash": adapters.base_hash(net)}
    net = adapters.attach_lora(net, config.rank, config.alpha, config.dropout)
    run = _Run(net, folder, _fingerprint(about, parts, config), config, len(_batches(parts.train, config, 0)), began)
    if not run.resumed:
        run.loss_before = mean_loss(net, parts.heldout, config) if parts.heldout else None
        run.validation_before = mean_loss(net, parts.validation, config) if parts.validation else None
    while run.epoch < config.epochs and run.stale < config.patience:
        _one_epoch(run, parts.train, config, progress)
        loss = mean_loss(net, stopping, config)
        run.end_epoch(loss)
        done = run.epoch * run.steps_per_epoch
        progress(
            done, config.epochs * run.steps_per_epoch, f"epoch {run.epoch}/{config.epochs}, validation loss {loss:.3f}"
        )
    run.restore_best()
    report = {
        "adapter": str(folder),
        **about,
        "pairs": len(parts.train),
        "validation": len(parts.validation),
        "heldout": len(parts.heldout),
        "loss_before": run.loss_before,
        "loss_after": mean_loss(net, parts.heldout, config) if parts.heldout else None,
        "validation_before": run.validation_before,
        "validation_after": run.best if parts.validation else None,
        "epochs": run.history,
        "steps": run.epoch * run.steps_per_epoch,
        "seconds": round(run.elapsed, 2),
        "config": asdict(config),
    }
    run.finish(report)
    return report


def mean_loss(net: Any, encoded: Sequence[Encoded], config: TrainConfig) -> float:
    """Mean nats per answer token over all of `encoded`."""
    rows = losses(net, encoded, config.batch_tokens)
    return sum(nll for nll, _ in rows) / max(1, sum(n for _, n in rows))


def losses(net: Any, encoded: Sequence[Encoded], batch_tokens: int = 2000) -> list[tuple[float, int]]:
    """(summed nats, answer tokens) of each item, in order."""
    import torch

    was_training = net.training
    net.eval()
    found: dict[int, tuple[float, int]] = {}
    with torch.inference_mode():
        for rows in _by_length(encoded, batch_tokens):
            nll, counted = _nll(net, [encoded[i] for i in rows])
            for i, total, n in zip(rows, nll.sum(1).tolist(), counted.sum(1).tolist(), strict=True):
                found[i] = (total, int(n))
    net.train(was_training)
    return [found[i] for i in range(len(encoded))]


def _one_epoch(run: _Run, train_set: Sequence[Encoded], config: TrainConfig, progress: Progress) -> None:
    batches = _batches(train_set, config, run.epoch)
    total = config.epochs * run.steps_per_epoch
    while run.step < len(batches):
        started = time.monotonic()
        rows = [train_set[i] for i in batches[run.step]]
        loss = run.update(rows, total)
        rate = sum(len(r.ids) for r in rows) / (time.monotonic() - started)
        note = f"epoch {run.epoch + 1}/{config.epochs}, loss {loss:.3f}, {rate:.0f} tokens/s"
        try:
            done = min(run.step, run.steps_per_epoch)  # an epoch may have a batch more than the first had
            progress(run.epoch * run.steps_per_epoch + done, total, note)
        except BaseException:  # the user's stop: nothing of it is lost
            run.save()
            raise


def _batches(train_set: Sequence[Encoded], config: TrainConfig, epoch: int) -> list[list[int]]:
    """Batches of like length in a random order that depends on seed and epoch alone."""
    chance = random.Random(f"{config.seed} {epoch}")
    batches = list(_by_length(train_set, config.batch_tokens, chance))
    chance.shuffle(batches)
    return batches


def _by_length(
    encoded: Sequence[Encoded], batch_tokens: int, chance: random.Random | None = None
) -> Iterator[list[int]]:
    """Indices in batches whose rows, padded to the longest, hold at most `batch_tokens` tokens and 16 rows."""
    jitter = [chance.uniform(0.8, 1.25) if chance else 1.0 for _ in encoded]
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].ids) * jitter[i])
    rows: list[int] = []
    for i in order:
        longest = max(len(encoded[j].ids) for j in (*rows, i))
        if rows and (longest * (len(rows) + 1) > batch_tokens or len(rows) == 16):
            yield rows
            rows = []
        rows.append(i)
    if rows:
        yield rows


def _nll(net: Any, rows: Sequence[Encoded]) -> tuple[Any, Any]:
    """(B, A) nats and the (B, A) mask that says which count. Rows are padded on the left, so that answers end together.

    The head is computed for the last A positions alone, A being the longest stretch from an answer's start to its end.
    """
    import torch

    T = max(len(r.ids) for r in rows)
    A = max(len(r.ids) - r.mask.index(True) for r in rows)
    device = next(net.parameters()).device
    pad = [T - len(r.ids) for r in rows]
    ids = torch.tensor([[0] * p + r.ids for p, r in zip(pad, rows, strict=True)], device=device)  # (B, T)
    mask = torch.tensor([[False] * p + r.mask for p, r in zip(pad, rows, strict=True)], device=device)[:, -A:]  # (B, A)
    attention = torch.tensor([[0] * p + [1] * (T - p) for p in pad], device=device)
    positions = (attention.cumsum(1) - 1).clamp_min(0)
    keep = min(A + 1, T)
    logits = net(
        input_ids=ids, attention_mask=attention, position_ids=positions, logits_to_keep=keep, use_cache=False
    ).logits
    nll = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), ids[:, 1 - keep :], reduction="none"
    )
    mask = mask[:, 1 - keep :]
    return nll * mask, mask


_SAVE_EVERY = 20  # steps between checkpoints
_STATE = ("fingerprint", "epoch", "step", "stale", "loss_before", "validation_before", "best", "history")


class _Run:
    """The state of one training run: what a checkpoint holds."""

    def __init__(
        self, net: Any, folder: Path, fingerprint: str, config: TrainConfig, steps_per_epoch: int, began: float | None
    ) -> None:
        """A new run, or the one that was stopped if it had the same base, data and settings."""
        import torch

        self.net, self.folder, self.part = net, folder, folder.with_name(folder.name + ".part")
        self.fingerprint, self.config, self.steps_per_epoch = fingerprint, config, steps_per_epoch
        self.weights = {name: p for name, p in net.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(self.weights.values(), lr=config.lr, weight_decay=config.weight_decay)
        self.epoch = self.step = self.stale = 0
        self.seconds, self._began = 0.0, time.monotonic() if began is None else began
        self.loss_before: float | None = None
        self.validation_before: float | None = None
        self.best = math.inf
        self.history: list[float] = []
        self.resumed = self._resume()

    @property
    def elapsed(self) -> float:
        """Seconds of this run and of the stopped ones before it."""
        return self.seconds + time.monotonic() - self._began

    def _resume(self) -> bool:
        file = self.part / "state.json"
        state = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if state.get("fingerprint") == self.fingerprint:
            self._load(state)
            return True
        shutil.rmtree(self.part, ignore_errors=True)
        self.part.mkdir(parents=True)
        return False

    def update(self, rows: Sequence[Encoded], total_steps: int) -> float:
        """One optimiser step; returns the batch's mean loss."""
        import torch

        done = self.epoch * self.steps_per_epoch + self.step
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * schedule(done, total_steps, self.config.warmup)
        torch.manual_seed(self.config.seed * 1_000_003 + done)  # dropout: the same after a resume
        self.net.train()
        nll, counted = _nll(self.net, rows)
        loss = nll.sum() / counted.sum()
        if not torch.isfinite(loss):
            raise UserError(
                f"Training diverged at --lr {self.config.lr}: give a lower one, such as {self.config.lr / 5:g}."
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.step % _SAVE_EVERY == 0:
            self.save()
        return float(loss.detach())

    def end_epoch(self, validation_loss: float) -> None:
        """Count the epoch, keep its weights if they are the best, checkpoint."""
        self.epoch, self.step = self.epoch + 1, 0
        self.history.append(round(validation_loss, 4))
        self.stale = 0 if validation_loss < self.best else self.stale + 1
        if validation_loss < self.best:
            self.best = validation_loss
            self._write("best", {n: p.detach() for n, p in self.weights.items()})
        self.save()

    def restore_best(self) -> None:
        """The weights of the epoch with the lowest validation loss."""
        import torch
        from safetensors.torch import load_file

        best = load_file(self.part / "best.safetensors")
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(best[name])

    def finish(self, report: Mapping[str, Any]) -> None:
        """Put the adapter and its report where `folder` is; an older adapter stays until the new one is complete."""
        done = self.part / "adapter"
        adapters.save(self.net, done)
        write_json(done / "report.json", report)
        old = self.folder.with_name(self.folder.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(old)
        done.rename(self.folder)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(self.part)

    def save(self) -> None:
        """A checkpoint: tensors first, then the state that names them, so that a kill between leaves the old one."""
        name = f"step-{self.epoch}-{self.step}"
        tensors = {f"weight.{n}": p.detach() for n, p in self.weights.items()}
        for n, p in self.weights.items():
            for key, value in self.optimizer.state.get(p, {}).items():
                tensors[f"{key}.{n}"] = value
        self._write(name, tensors)
        state = {key: getattr(self, key) for key in _STATE}
        write_json(self.part / "state.json", state | {"tensors": name, "seconds": self.elapsed})
        for old in self.part.glob("step-*.safetensors"):
            if old.stem != name:
                old.unlink()

    def _load(self, state: dict[str, Any]) -> None:
        import torch
        from safetensors.torch import load_file

        for key in (*_STATE, "seconds"):
            setattr(self, key, state[key])
        tensors = load_file(self.part / f"{state['tensors']}.safetensors")
        with torch.no_grad():
            for n, p in self.weights.items():
                p.copy_(tensors[f"weight.{n}"])
                kept = {
                    k.removesuffix(f".{n}"): v
                    for k, v in tensors.items()
                    if k.endswith(f".{n}") and not k.startswith("weight.")
                }
                if kept:
                    self.optimizer.state[p] = {k: v.to(p.device) if k != "step" else v for k, v in kept.items()}

    def _write(self, name: str, tensors: dict[str, Any]) -> None:
        from safetensors.torch import save_file

        temp = self.part / f"{name}.tmp"
        save_file({n: t.contiguous().cpu().clone() for n, t in tensors.items()}, temp)
        temp.replace(self.part / f"{name}.safetensors")


def schedule(step: int, total: int, warmup: float) -> float:
    """Share of the peak learning rate: linear up, then a cosine down to a tenth."""
    rise = max(1, int(total * warmup))
    if step < rise:
        return (step + 1) / rise
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def _fingerprint(about: Mapping[str, Any], parts: Parts, config: TrainConfig) -> str:
    """Names base, data and settings: a checkpoint of another run is not resumed."""
    digest = hashlib.sha256(repr((asdict(config), about["base_hash"])).encode())
    for item in (*parts.train, *parts.validation, *parts.heldout):
        digest.update(repr((item.source, item.ids)).encode())
    return digest.hexdigest()
