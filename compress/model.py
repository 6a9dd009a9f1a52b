"""Compress a whole model, block by block, each on what the compressed blocks before it give.

The main path is `compress_model`. Knows the order of work; knows no method's insides, no mail.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress import ranks
from compress.blocks import find_blocks, left_out, plain_linears, weights_in
from compress.calibrate import Stream, advance_, capture, statistics
from compress.checkpoint import bits_per_weight, check_replaceable, load_model, save_model
from compress.embeddings import EmbeddingConfig, compress_embeddings_, token_counts
from compress.errors import CompressError
from compress.files import make, new_file
from compress.guide import Guide, guides
from compress.layers import LayerReport, Recipe, compress_layers_, recipe_for
from compress.linear import QuantizedEmbedding, holding, working_dtype
from compress.progress import Clock, peak_memory, say
from compress.rotate import rotate_
from compress.text import check_ids, load_tokenizer, own_samples, token_sequences
from compress.tune import TuneConfig, TuneReport, tune_block, tune_model
from compress.unfinished import Unfinished

REPORT = "report.json"
GIB = 2**30
ROTATIONS: dict[str, dict[str, bool] | None] = {
    "no": None,
    "heads": {"residual": False, "heads": True},
    "full": {"residual": True, "heads": True},
}


@dataclass(frozen=True)
class Options:
    """What holds for every method. The command line has a flag for each field."""

    sequences: int = 64  # of calibration
    length: int = 1024  # tokens of each
    held_out: int = 16  # more sequences, on which tuning stops early
    seed: int = 0
    guided: int = 0  # output groups that each have a Hessian weighted by the loss's gradients (GuidedQuant); 0: plain
    tune: int = 0  # at most so many epochs of tuning a block against the uncompressed one; 0: none
    finetune: int = 0  # then at most so many epochs of tuning the whole model to the uncompressed one's logits; 0: none
    eora: int = 0  # rank of a low-rank repair; 0: none
    sequential: bool = False  # Hessians of a layer with those before it in the block compressed already: slower
    rotate: str = "no"  # QuaRot first: "heads" turns values, "full" the hidden space too (and unties tied embeddings)
    embeddings: int = 8  # bits of the input embedding, 4 to 8; 0 leaves it at 16
    head: int = 8  # bits of the output head, 4 to 8; 0 leaves it at 16
    memory: float = 4.0  # GiB of hidden states in memory; beyond, they lie in files beside the output
    batch: int = 4096  # tokens that run through a block at once

    @property
    def tunes(self) -> bool:
        """Whether anything needs held-out sequences."""
        return bool(self.tune or self.finetune)


@dataclass(frozen=True)
class Report:
    """What was done and what it cost. bits: from file bytes, of `body`, `embeddings`, `head` and `all`."""

    settings: dict[str, Any]
    bits: dict[str, float]
    bytes: int
    seconds: float
    peak_memory_bytes: int
    peak_gpu_bytes: int
    layers: list[LayerReport]
    tuned: list[dict[str, Any]]
    finetuned: dict[str, Any] | None
    left_out: dict[str, int]
    out: str

    def summary(self) -> dict[str, Any]:
        """The keys that scripts rely on."""
        kept = {"bytes": self.bytes, "seconds": self.seconds, "peak_memory_bytes": self.peak_memory_bytes}
        bits = {f"bits_{part}": value for part, value in self.bits.items() if part != "all"}
        return {"bits_per_weight": self.bits["all"], **kept, "out": self.out, **bits}


def compress_model(
    source: str | Path,
    out: str | Path,
    method: str,
    bits: float,
    calibration: Path | None = None,
    options: Options = Options(),  # noqa: B008  frozen
    settings: Mapping[str, Any] | None = None,
) -> Report:
    """Write a smaller model to the directory `out`, which load_model reads; take up again what was interrupted.

    source: a model directory or a hub name. bits: of the linear layers in the blocks. calibration: a .txt, or a .jsonl
    with `text` fields; without one the model's own samples serve. settings: changes to the method's Config.
    """
    begun, out = time.perf_counter(), Path(out)
    recipe = recipe_for(method, bits, options.seed, options.eora, settings)
    device = ranks.join()
    check_options(options, out)
    torch.manual_seed(options.seed)
    source = find_model(source)
    model = load_model(source, torch.bfloat16 if device.type == "cuda" else torch.float32)
    prefix, blocks = find_blocks(model)
    check_weights(model, blocks)
    check_space(out, model, blocks, bits, options)
    ids = calibration_ids(model, source, calibration, options, device)
    said = {"method": method, "bits": bits, "config": asdict(recipe.low), **asdict(options), "processes": ranks.world()}
    said |= {"mixed_with": asdict(recipe.high)} if recipe.high else {}
    apart = {"memory": 0, "finetune": 0}  # no block depends on where hidden states lie, or on what follows the blocks
    work = Unfinished(
        out, said | apart | {"source": _identity(source), "text": sha256(ids.numpy().tobytes()).hexdigest()}
    )
    compressor = _Compressor(model, prefix, blocks, recipe, options, work, device)
    notes = compressor.run(ids)
    finetuned = compressor.finetune_(source, ids) if options.finetune else None
    return _finish(compressor, source, out, said, notes, finetuned, begun)


def check_options(options: Options, out: Path) -> None:
    """Raises CompressError for numbers that cannot be meant, and for an `out` that holds something else."""
    least = {"sequences": ranks.world(), "length": 1, "held_out": 1 if options.tunes else 0, "batch": 1}
    for name, low in (least | dict.fromkeys(("guided", "tune", "finetune", "eora", "memory"), 0)).items():
        if not low <= getattr(options, name) < math.inf:
            raise CompressError(f"{name} is {getattr(options, name)}: give {low} or more")
    if options.rotate not in ROTATIONS:
        raise CompressError(f"rotate is '{options.rotate}': choose one of {', '.join(ROTATIONS)}")
    for name in ("embeddings", "head"):
        if getattr(options, name) not in (0, 4, 5, 6, 7, 8):
            raise CompressError(f"{name} is {getattr(options, name)} bits: choose 4 to 8, or 0 to leave it at 16")
    check_replaceable(out)


def find_model(source: str | Path) -> Path:
    """A model directory, or the local copy of a hub model, fetched if need be."""
    if Path(source).is_dir():
        return Path(source)
    if str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        raise CompressError(f"there is no model directory '{source}': give one, or a hub name such as Qwen/Qwen3-0.6B")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(str(source), allow_patterns=["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"])
        )
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise CompressError(
            f"'{source}' is no directory, is not in the local cache and could not be fetched ({type(error).__name__})"
        ) from error


def check_weights(model: nn.Module, blocks: nn.ModuleList) -> None:
    """Raises CompressError for a model that is compressed already, and for the first parameter with NaN or infinity."""
    if not plain_linears(blocks):
        raise CompressError("this model is compressed already: give the one that it was made from")
    for name, tensor in model.named_parameters():
        if not tensor.isfinite().all():
            raise CompressError(f"layer '{name.removesuffix('.weight')}' holds weights that are not finite")


def check_space(out: Path, model: nn.Module, blocks: nn.ModuleList, bits: float, options: Options) -> None:
    """Raises CompressError if the disk has no room for finished blocks, the whole model and hidden states together."""
    rest = sum(p.numel() for p in model.parameters()) - weights_in(blocks)
    need = int(2 * weights_in(blocks) * (bits + 0.5) / 8 + 2 * rest)
    hidden = hidden_bytes(model, options)
    need += hidden if hidden > options.memory * GIB else 0
    if (free := shutil.disk_usage(make(out.parent)).free) < need:
        raise CompressError(f"'{out.parent}' has {free / GIB:.2f} GiB free, and this needs {need / GIB:.2f} GiB")


def hidden_bytes(model: nn.Module, options: Options) -> int:
    """What the hidden states of all sequences take."""
    sequences = options.sequences + (options.sequences + 2 * options.held_out if options.tune else 0)
    width = model.config.get_text_config().hidden_size
    return sequences * options.length * width * working_dtype(model).itemsize


def calibration_ids(
    model: nn.Module, source: Path, text: Path | None, options: Options, device: torch.device
) -> Tensor:
    """(sequences + held-out ones, length) token ids, the same on all processes."""
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", options.length)
    if options.length > longest:
        raise CompressError(f"length is {options.length} tokens: this model reads at most {longest}")
    count = options.sequences + (options.held_out if options.tunes else 0)
    if text is not None:
        ids = token_sequences(Path(text), load_tokenizer(source), count, options.length, options.seed)
        check_ids(ids.unique().tolist(), model)
        return ids
    model.to(device)
    ids = torch.tensor(ranks.same(own_samples(model, count, options.length, options.seed).tolist()))
    model.cpu()
    return ids


def _identity(source: Path) -> str:
    """Names the weights of a directory: the contents of its configuration and of every file of tensors."""
    digest = sha256()
    for path in sorted(p for p in source.iterdir() if p.name == "config.json" or p.suffix in (".safetensors", ".bin")):
        with path.open("rb") as file:
            digest.update(f"{path.name} {path.stat().st_size} {file_digest(file, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()


@dataclass
class _Compressor:
    model: nn.Module
    prefix: str
    blocks: nn.ModuleList
    recipe: Recipe
    options: Options
    work: Unfinished
    device: torch.device

    def run(self, ids: Tensor) -> list[dict[str, Any]]:
        """Compress every block in place; the notes of each."""
        self._rotate()
        guide = self._guides(ids)
        streams, found, clock = _Streams(self, ids), [], Clock(len(self.blocks))
        self._ends(ids)
        streams.start(ids)
        for index, block in enumerate(self.blocks):
            block.to(self.device)
            streams.pass_by(index, block)
            notes = self.work.load_(index, block)
            known = notes is not None
            notes = notes if known else self._block(index, block, streams, guide[index] if guide else None)
            if not known and ranks.first():
                self.work.save(index, block, notes | {"seconds": clock.since()})
            block.to(self.device)
            if index + 1 < len(self.blocks):
                with holding(block):
                    streams.advance(index, block)
            block.cpu()
            found.append(notes)
            clock.tick(known, f"error {worst(notes):.4f}")
        return found

    def _block(self, index: int, block: nn.Module, streams: _Streams, guide: Guide | None) -> dict[str, Any]:
        torch.manual_seed(self.options.seed + index)
        prefix = f"{self.prefix}.{index}."
        notes = {"left_out": {prefix + name: count for name, count in left_out(block).items()}}
        seen = statistics(block, plain_linears(block), streams.inputs, index, self.device, guide)
        if not self.options.sequential:
            rows = compress_layers_(block, seen, seen.groups(), self.recipe, prefix)
        else:
            rows = []
            for names in seen.groups():
                layers = {name: block.get_submodule(name) for name in names}
                with holding(block):
                    seen = statistics(block, layers, streams.inputs, index, self.device, guide)
                rows += compress_layers_(block, seen, [names], self.recipe, prefix)
        return notes | {"layers": [asdict(row) for row in rows], "tuned": streams.tune_(index, block)}

    def _rotate(self) -> None:
        how, dtype = ROTATIONS[self.options.rotate], working_dtype(self.model)
        if how is not None:
            rotate_(self.model.float(), self.options.seed, **how)
            self.model.to(dtype)

    def _ends(self, ids: Tensor) -> None:
        """Compress the input embedding and the head, so that the blocks see the embeddings that they will get."""
        options, dtype = self.options, working_dtype(self.model)
        if options.embeddings or options.head:
            counts = token_counts(ids[: options.sequences], self.model.config.get_text_config().vocab_size)
            for end in self._both_ends():
                end.to(self.device)
            compress_embeddings_(self.model, EmbeddingConfig(options.embeddings, options.head), counts)
            for end in self._both_ends():
                end.cpu()
        if isinstance(embedding := self.model.get_input_embeddings(), QuantizedEmbedding):
            embedding.dtype = dtype

    def _both_ends(self) -> tuple[nn.Module, nn.Module]:
        return self.model.get_input_embeddings(), self.model.get_output_embeddings()

    def _guides(self, ids: Tensor) -> list[Guide] | None:
        if not self.options.guided:
            return None
        say(f"gradients of {len(ids)} sequences")
        self.model.to(self.device)
        mine = ranks.share(ids[: self.options.sequences])
        made = guides(self.model, self.blocks, mine, self.options.guided, self.batch)
        self.model.cpu()
        return made

    def finetune_(self, source: Path, ids: Tensor) -> TuneReport:
        """Fit the compressed model to the predictions of the one in `source`; both lie on the device meanwhile."""
        count = self.options.sequences
        say(f"tuning the whole model on {count} sequences, at most {self.options.finetune} epochs")
        teacher = load_model(source, working_dtype(self.model), str(self.device))
        self.model.to(self.device)
        parts = ranks.share(ids[:count]).split(self.batch), ids[count:].split(self.batch)
        report = tune_model(self.model, partial(teacher, use_cache=False), *parts, self.tuning(self.options.finetune))
        self.model.cpu()
        say(f"KL {report.before:.4f} before, {report.after:.4f} after epoch {report.epoch}")
        return report

    def tuning(self, epochs: int) -> TuneConfig:
        """Steps of about four sequences."""
        return TuneConfig(epochs=epochs, batch=max(1, 4 // self.batch), seed=self.options.seed)

    @property
    def batch(self) -> int:
        """Sequences that run at once."""
        return max(1, self.options.batch // self.options.length)


class _Streams:
    """Hidden states of the calibration set: as the compressed blocks give them and, for tuning, as they should be."""

    def __init__(self, run: _Compressor, ids: Tensor) -> None:
        """The ideal ones, of the model as it was."""
        self.run = run
        self.inputs = self.held_out = self.ideal = self.held_out_ideal = None
        if run.options.tune:
            mine, held_out = self._parts(ids)
            self.ideal, self.held_out_ideal = self._capture("ideal", mine), self._capture("wanted", held_out)

    def start(self, ids: Tensor) -> None:
        """The others, of the model with compressed embeddings."""
        mine, held_out = self._parts(ids)
        self.inputs = self._capture("inputs", mine)
        if self.run.options.tune:
            self.held_out = self._capture("held_out", held_out)

    def _parts(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        count = self.run.options.sequences
        return ranks.share(ids[:count]), ids[count:]

    def _file(self, name: str) -> Path | None:
        needed = hidden_bytes(self.run.model, self.run.options)
        return self.run.work.path(f"{name}{ranks.rank()}.hidden") if needed > self.run.options.memory * GIB else None

    def _capture(self, name: str, ids: Tensor) -> Stream:
        with holding(self.run.model):
            return capture(self.run.model, self.run.blocks, ids, self.run.batch, self._file(name))

    def pass_by(self, index: int, block: nn.Module) -> None:
        """Let the ideal streams go through the uncompressed block."""
        for stream in (self.ideal, self.held_out_ideal):
            if stream is not None:
                advance_(stream, index, block, self.run.device)

    def advance(self, index: int, block: nn.Module) -> None:
        """Let the others go through the compressed one."""
        for stream in (self.inputs, self.held_out):
            if stream is not None:
                advance_(stream, index, block, self.run.device)

    def tune_(self, index: int, block: nn.Module) -> dict[str, Any] | None:
        """Fit the compressed block to the ideal outputs; what that brought, None without tuning."""
        if self.ideal is None:
            return None
        validation = self.held_out.calls_of(index), self.held_out_ideal.parts()
        config = self.run.tuning(self.run.options.tune)
        return asdict(tune_block(block, self.inputs.calls_of(index), self.ideal.parts(), validation, config))


def worst(notes: dict[str, Any]) -> float:
    """The largest relative error of a block's layers."""
    return max((row["error"] for row in notes["layers"]), default=0.0)


def _finish(
    done: _Compressor,
    source: Path,
    out: Path,
    said: dict[str, Any],
    notes: list[dict[str, Any]],
    finetuned: TuneReport | None,
    begun: float,
) -> Report:
    if ranks.first():
        save_model(done.model, source, out, said)
    # The first process counts for all: by the time another looked, the report might stand there half written.
    bits, size = ranks.same(
        (bits_per_weight(out), sum(f.stat().st_size for f in out.iterdir())) if ranks.first() else None
    )
    report = Report(
        settings=said | {"source": str(source)},
        bits=bits,
        bytes=size,
        seconds=time.perf_counter() - begun + sum(n.get("seconds", 0.0) for n in notes),
        peak_memory_bytes=peak_memory(),
        peak_gpu_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
        layers=[LayerReport(**row) for n in notes for row in n["layers"]],
        tuned=[n["tuned"] for n in notes if n["tuned"]],
        finetuned=asdict(finetuned) if finetuned else None,
        left_out={name: count for n in notes for name, count in n["left_out"].items()},
        out=str(out),
    )
    if ranks.first():
        with new_file(out / REPORT) as part:
            part.write_text(json.dumps(asdict(report), indent=1))
    done.work.remove()
    return report
