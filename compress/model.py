"""Compress a whole model, block by block, each on what the compressed blocks before it give.

The main path is `compress_model`. Knows the order of work; knows no method's insides, no mail.
"""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from compress import ops, ranks
from compress.blocks import find_blocks, left_out, plain_linears, replace_, weights_in
from compress.calibrate import Guide, Statistics, Stream, advance_, capture, guides, statistics
from compress.checkpoint import bits_per_weight, layer_spec, load_model, replace_layers_, save_model, share_, unshared
from compress.embeddings import EmbeddingConfig, compress_embeddings_, token_counts
from compress.eora import repair
from compress.errors import CompressError
from compress.linear import QuantizedEmbedding, QuantizedLinear, quantized_layers
from compress.methods import Method
from compress.methods import method as method_of
from compress.rotate import rotate_
from compress.text import load_tokenizer, own_samples, token_sequences
from compress.tune import TuneConfig, tune_block
from compress.weight import QuantizedWeight

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
    eora: int = 0  # rank of a low-rank repair; 0: none
    rotate: str = "no"  # QuaRot first: "heads" turns values, "full" the hidden space too (and unties tied embeddings)
    embeddings: int = 8  # bits of the input embedding, 4 to 8; 0 leaves it at 16
    head: int = 8  # bits of the output head, 4 to 8; 0 leaves it at 16
    memory: float = 4.0  # GiB of hidden states in memory; beyond, they lie in files beside the output
    batch: int = 4096  # tokens that run through a block at once


@dataclass(frozen=True)
class LayerReport:
    """name: in the model. error: tr(ΔW H ΔWᵀ) / tr(W H Wᵀ). tokens: that reached the layer; 0: rounded blindly."""

    name: str
    shape: tuple[int, int]
    bits: float
    error: float
    tokens: int


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
    chosen, config = method_of(method), method_config(method, bits, options.seed, settings)
    check_options(options, out)
    device = ranks.join()
    torch.manual_seed(options.seed)
    source = find_model(source)
    model = load_model(source, torch.bfloat16 if device.type == "cuda" else torch.float32)
    prefix, blocks = find_blocks(model)
    check_finite(model, prefix, blocks)
    ids = calibration_ids(model, source, calibration, options, device)
    said = {"method": method, "bits": bits, "config": asdict(config), **asdict(options), "processes": ranks.world()}
    work = Unfinished(out, said | {"source": _identity(source), "text": sha256(ids.numpy().tobytes()).hexdigest()})
    check_space(out, model, blocks, bits)
    compressor = _Compressor(model, prefix, blocks, chosen, config, options, work, device)
    layers = compressor.run(ids)
    return _finish(compressor, source, out, said, layers, begun)


def method_config(name: str, bits: float, seed: int, settings: Mapping[str, Any] | None = None) -> Any:
    """The method's own settings for so many bits a weight. Raises CompressError for what the method does not have."""
    Config = method_of(name).Config
    known = {f.name for f in fields(Config)}
    if foreign := set(settings or ()) - known:
        raise CompressError(f"{name} has no setting '{min(foreign)}': it has {', '.join(sorted(known))}")
    return replace(Config.for_bits(bits), **{"seed": seed} if "seed" in known else {}, **settings or {})


def check_options(options: Options, out: Path) -> None:
    """Raises CompressError for numbers that cannot be meant, and for an `out` that holds something else."""
    for name, least in {
        "sequences": ranks.world(),
        "length": 1,
        "held_out": 1 if options.tune else 0,
        "batch": 1,
    }.items():
        if getattr(options, name) < least:
            raise CompressError(f"{name} is {getattr(options, name)}: give {least} or more")
    if options.rotate not in ROTATIONS:
        raise CompressError(f"rotate is '{options.rotate}': choose one of {', '.join(ROTATIONS)}")
    if options.tune and options.sequences % ranks.world():
        raise CompressError(
            f"sequences is {options.sequences}: tuning needs as many for each of {ranks.world()} processes"
        )
    for name in ("embeddings", "head"):
        if getattr(options, name) not in (0, 4, 5, 6, 7, 8):
            raise CompressError(f"{name} is {getattr(options, name)} bits: choose 4 to 8, or 0 to leave it at 16")
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / "compressed.json").is_file())):
        raise CompressError(f"'{out}' exists and is no compressed model: name a new directory")


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


def check_finite(model: nn.Module, prefix: str, blocks: nn.ModuleList) -> None:
    """Raises CompressError for the first parameter that holds NaN or infinity."""
    for name, tensor in model.named_parameters():
        if not tensor.isfinite().all():
            raise CompressError(f"layer '{name.removesuffix('.weight')}' holds weights that are not finite")


def check_space(out: Path, model: nn.Module, blocks: nn.ModuleList, bits: float) -> None:
    """Raises CompressError if the disk has no room for the finished blocks and the whole model together."""
    rest = sum(p.numel() for p in model.parameters()) - weights_in(blocks)
    need = int(2 * weights_in(blocks) * (bits + 0.5) / 8 + 2 * rest)
    out.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(out.parent).free) < need:
        raise CompressError(f"'{out.parent}' has {free / GIB:.2f} GiB free, and this needs {need / GIB:.2f} GiB")


def calibration_ids(
    model: nn.Module, source: Path, text: Path | None, options: Options, device: torch.device
) -> Tensor:
    """(sequences + held-out ones, length) token ids, the same on all processes."""
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", options.length)
    if options.length > longest:
        raise CompressError(f"length is {options.length} tokens: this model reads at most {longest}")
    count = options.sequences + (options.held_out if options.tune else 0)
    if text is not None:
        return token_sequences(Path(text), load_tokenizer(source), count, options.length, options.seed)
    model.to(device)
    ids = torch.tensor(ranks.same(own_samples(model, count, options.length, options.seed).tolist()))
    model.cpu()
    return ids


def _identity(source: Path) -> str:
    """Names the weights of a directory: configuration, and the size and ends of every tensor file."""
    digest = sha256((source / "config.json").read_bytes() if (source / "config.json").is_file() else b"")
    for path in sorted(source.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(f"{path.name} {path.stat().st_size}".encode() + file.read(65536))
            file.seek(-min(65536, path.stat().st_size), 2)
            digest.update(file.read())
    return digest.hexdigest()


class Unfinished:
    """Finished blocks beside the output, until the whole is written: what a killed run leaves and the next one takes up."""

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self.folder = out.with_name(out.name + ".unfinished")
        print_of = sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
        known = self.folder / "fingerprint"
        if ranks.first() and not (known.is_file() and known.read_text() == print_of):
            if self.folder.exists():
                say(f"{self.folder} belongs to other settings: starting anew")
                shutil.rmtree(self.folder)
            self.folder.mkdir(parents=True)
            known.write_text(print_of)
        ranks.wait()

    def path(self, name: str) -> Path:
        return self.folder / name

    def save(self, index: int, block: nn.Module, notes: dict[str, Any]) -> None:
        """A block, whole or not at all. notes: JSON to come back with it."""
        tensors, shared = unshared(block.state_dict())
        layers = {name: layer_spec(layer) for name, layer in quantized_layers(block).items()}
        meta = json.dumps({"layers": layers, "shared": shared, "notes": notes})
        part, path = self.path(f"{index}.part"), self.path(f"{index}.safetensors")
        save_file(tensors, part, metadata={"block": meta})
        part.replace(path)

    def load_(self, index: int, block: nn.Module) -> dict[str, Any] | None:
        """Turn `block` into the finished one and return its notes; None, and nothing done, if there is none."""
        path = self.path(f"{index}.safetensors")
        if not ranks.same(path.is_file()):
            return None
        try:
            with safe_open(path, framework="pt") as file:
                meta = json.loads(file.metadata()["block"])
                state = {key: file.get_tensor(key) for key in file.keys()}
        except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise CompressError(f"'{path}' is damaged: delete {self.folder} and start anew") from error
        replace_layers_(block, meta["layers"])
        state |= {name: state[owner] for name, owner in meta["shared"].items()}
        block.load_state_dict(state, assign=True)
        share_(block, meta["shared"])
        return meta["notes"]

    def remove(self) -> None:
        ranks.wait()
        if ranks.first():
            shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class _Compressor:
    model: nn.Module
    prefix: str
    blocks: nn.ModuleList
    method: Method
    config: Any
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
            with holding(block.to(self.device)):
                streams.advance(index, block)
            block.cpu()
            found.append(notes)
            clock.tick(known, f"error {worst(notes):.4f}")
        return found

    def _block(self, index: int, block: nn.Module, streams: _Streams, guide: Guide | None) -> dict[str, Any]:
        torch.manual_seed(self.options.seed + index)
        seen = statistics(block, plain_linears(block), streams.inputs, index, self.device, guide)
        notes = {"left_out": {f"{self.prefix}.{index}.{n}": count for n, count in left_out(block).items()}}
        rows = compress_layers_(block, seen, self._quantize, f"{self.prefix}.{index}.")
        return notes | {"layers": [asdict(row) for row in rows], "tuned": streams.tune_(index, block)}

    def _quantize(self, weights: list[Tensor], hessians: list[Tensor]) -> list[QuantizedWeight]:
        made = self.method.quantize(weights, hessians, self.config)
        if not self.options.eora:
            return made
        return [repair(*each, self.options.eora) for each in zip(made, weights, hessians, strict=True)]

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

    def _file(self, name: str, shape: torch.Size) -> Path | None:
        size = shape.numel() * 4 * (2 if self.run.options.tune else 1)
        return self.run.work.path(f"{name}{ranks.rank()}.hidden") if size > self.run.options.memory * GIB else None

    def _capture(self, name: str, ids: Tensor) -> Stream:
        width = self.run.model.config.get_text_config().hidden_size
        path = self._file(name, torch.Size((*ids.shape, width)))
        return capture(self.run.model, self.run.blocks, ids, self.run.batch, path)

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
        options = self.run.options
        config = TuneConfig(epochs=options.tune, batch=max(1, 4 // self.run.batch), seed=options.seed)
        validation = self.held_out.calls_of(index), self.held_out_ideal.parts()
        with ranks.averaged_steps():
            report = tune_block(block, self.inputs.calls_of(index), self.ideal.parts(), validation, config)
        return asdict(report)


def compress_layers_(
    block: nn.Module,
    seen: Statistics,
    quantize: Callable[[list[Tensor], list[Tensor]], list[QuantizedWeight]],
    prefix: str,
) -> list[LayerReport]:
    """Replace the linear layers of a block by compressed ones; layers that read the same input go to the method together.

    Processes share the groups out among them; all get all results.
    """
    hessians, groups, layers = seen.hessians(), seen.groups(), seen.layers
    owners = [number % ranks.world() for number in range(len(groups))]
    mine = {}
    for number, names in enumerate(groups):
        if owners[number] == ranks.rank():
            with _naming([prefix + name for name in names]):
                weights = [layers[name].weight.detach().float() for name in names]
                mine[number] = quantize(weights, [hessians[name] for name in names])
    rows = []
    for number, names in enumerate(groups):
        made = ranks.send_weights(mine.pop(number, None), owners[number], layers[names[0]].weight.device)
        for name, weight in zip(names, made, strict=True):
            layer = layers[name]
            rows.append(_layer_report(prefix + name, layer, weight, hessians[name], seen.tokens[name]))
            replace_(block, name, QuantizedLinear(weight, layer.bias).to(layer.weight.device))
    return rows


@contextlib.contextmanager
def _naming(names: list[str]) -> Iterator[None]:
    """A method does not know whose weights it refuses."""
    try:
        yield
    except CompressError as error:
        raise CompressError(f"{', '.join(names)}: {error}") from error


@torch.no_grad()
def _layer_report(name: str, layer: nn.Linear, weight: QuantizedWeight, hessian: Tensor, tokens: int) -> LayerReport:
    exact = layer.weight.detach().float()
    lost = ops.weighted_error(exact - weight.dense(), hessian) / ops.weighted_error(exact, hessian).clamp(min=1e-30)
    size = sum(t.numel() * t.element_size() for t in unshared(weight.state_dict())[0].values())
    return LayerReport(name, tuple(exact.shape), 8 * size / exact.numel(), lost.item(), tokens)


@contextlib.contextmanager
def holding(module: nn.Module) -> Iterator[None]:
    """Inside, compressed layers keep their decoded weights."""
    layers, dtype = quantized_layers(module).values(), working_dtype(module)
    for layer in layers:
        layer.hold(dtype)
    try:
        yield
    finally:
        for layer in layers:
            layer.hold(None)


def working_dtype(module: nn.Module) -> torch.dtype:
    """The dtype of what is not compressed."""
    return next((p.dtype for name, p in module.named_parameters() if ".quantized." not in name), torch.float32)


class Clock:
    """Says on standard error how far the work is and how long it will take."""

    def __init__(self, count: int) -> None:
        self.count, self.done, self.worked, self.last, self.seconds = count, 0, 0, time.perf_counter(), 0.0

    def since(self) -> float:
        """Seconds since the last tick."""
        return time.perf_counter() - self.last

    def tick(self, known: bool, remark: str) -> None:
        """One more is done. known: it lay there from an earlier run."""
        passed, self.last = self.since(), time.perf_counter()
        self.done += 1
        if not known:
            self.worked, self.seconds = self.worked + 1, self.seconds + passed
        left = f"{duration((self.count - self.done) * self.seconds / self.worked)} left" if self.worked else "found"
        say(f"block {self.done}/{self.count}: {passed:.1f} s, {remark}, {left}")


def duration(seconds: float) -> str:
    """75 -> '1 min 15 s'."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def say(text: str) -> None:
    """A line on standard error, from the first process alone."""
    if ranks.first():
        print(text, file=sys.stderr, flush=True)


def worst(notes: dict[str, Any]) -> float:
    """The largest relative error of a block's layers."""
    return max((row["error"] for row in notes["layers"]), default=0.0)


def _finish(
    done: _Compressor, source: Path, out: Path, said: dict[str, Any], notes: list[dict[str, Any]], begun: float
) -> Report:
    if ranks.first():
        save_model(done.model, source, out, said)
    ranks.wait()
    report = Report(
        settings=said | {"source": str(source)},
        bits=bits_per_weight(out),
        bytes=sum(f.stat().st_size for f in out.iterdir()),
        seconds=time.perf_counter() - begun + sum(n.get("seconds", 0.0) for n in notes),
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        peak_gpu_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
        layers=[LayerReport(**row) for n in notes for row in n["layers"]],
        tuned=[n["tuned"] for n in notes if n["tuned"]],
        left_out={name: count for n in notes for name, count in n["left_out"].items()},
        out=str(out),
    )
    if ranks.first():
        part = out / (REPORT + ".part")
        part.write_text(json.dumps(asdict(report), indent=1))
        part.replace(out / REPORT)
    done.work.remove()
    return report
