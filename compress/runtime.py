"""The native decoder: a Llama-type model from its directory, without torch. Knows files and token ids; knows no text.

Reads our compressed checkpoints, 8-bit rows and plain safetensors of Llama, Mistral, Qwen 2 and 3 and Phi-3. `Unsupported`
says what torch has to run instead.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress import native, tensors
from compress.errors import BROKEN, CompressError, Unsupported
from compress.guess import Lookup, Pace
from compress.lora import read_lora

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3")
LARGEST_HALF = 65504  # of fp16, in which plain weights are kept
MOST_CONTEXT = 8192  # tokens of cache, if the caller names no number: a model's own limit may be a million


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose the next token. temperature 0 is greedy; seed matters only above it."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0


class Runtime:
    """A loaded model and one cache. What two prompts have in common at their beginning is read once."""

    def __init__(self, model: Any, context: int, threads: int = 0, cache_bits: int = 16) -> None:
        self.model, self.context = model, context
        self.session = native._kernels.Session(model, native.pool(threads), cache_bits)
        self._pace = Pace()
        self._one_at_a_time = threading.Lock()

    def generate(
        self,
        prompt: Sequence[int],
        sampling: Sampling = Sampling(),
        most: int = 1 << 30,
        ends: frozenset[int] = frozenset(),
        stopped: Callable[[], bool] = lambda: False,
        guess: bool = True,
    ) -> Iterator[int]:
        """Tokens after `prompt`, until one of `ends` (not yielded), `most` of them, a full context, or `stopped()`.

        guess: read several tokens at once where the text so far tells what may come: sooner, and the same tokens. A second
        caller waits. Raises ValueError for an empty prompt, ids that the model does not know, or a prompt that does not fit.
        """
        how = {
            name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        }
        choice = native._kernels.Sampling(**how)
        with self._one_at_a_time:
            self.session.seed(sampling.seed)
            self.session.prompt(list(prompt), stopped)
            if most < 1 or stopped():
                return
            text, written = Lookup(prompt), 0
            self._pace.begin()
            sampled = [self.session.sample(choice)]
            while True:
                for token in sampled:
                    if token in ends or stopped():
                        return
                    yield token
                    text.add(token)
                    written += 1
                room = min(most - written, self.context + 1 - len(text.tokens))
                if room < 1 or stopped():
                    return
                sampled = self._follow(text, min(room - 1, self._pace.guesses()) if guess else 0, choice)

    def _follow(self, text: Lookup, most: int, choice: Any) -> list[int]:
        """The next tokens: those of at most `most` guesses that are right, and one more."""
        guesses, begun = text.guess(most), time.perf_counter()
        sampled = self.session.follow([text.tokens[-1], *guesses], choice)
        self._pace.add(len(guesses), len(sampled) - 1, time.perf_counter() - begun)
        return sampled

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """(tokens, vocab) fp32: after each token of a text that is read anew."""
        with self._one_at_a_time:
            self.session.truncate(0)
            return self.session.all_logits(list(ids))


def load(
    folder: Path,
    adapter: Path | None = None,
    context: int = 0,
    threads: int = 0,
    cache_bits: int = 16,
    exact: bool = True,
) -> Runtime:
    """The model in a directory, with a LoRA adapter (peft's files) beside its weights.

    context: tokens of cache; 0 for the model's own, at most MOST_CONTEXT. threads: 0 for one a physical core.
    cache_bits: of a number of keys and values: 32, 16 or 8. exact: see `native.linear`; 8-bit rows and plain
    numbers always are. Raises Unsupported, or CompressError for what is damaged.
    """
    if not native.available():
        raise Unsupported("Panza was installed without a C++ compiler, so it has no kernels of its own")
    config = read_config(folder)
    try:
        shape = _shape(config, context)
        weights = Weights(folder, config, exact)
        model = _build(shape, weights, config)
        if adapter is not None:
            _attach(weights, adapter)
    except (*BROKEN, MemoryError) as error:
        if isinstance(error, CompressError):
            raise
        said = (
            error if type(error) is ValueError else type(error).__name__
        )  # the extension's own sentences are ValueErrors
        raise CompressError(f"'{folder}' holds no model that can be read: {said}") from error
    try:
        return Runtime(model, shape["context"], threads, cache_bits)
    except MemoryError as error:
        raise CompressError(f"there is no memory for {shape['context']} tokens: name a smaller context") from error


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a model directory."""
    return _json(folder / "config.json")


class Weights:
    """The weights of a directory as native objects, made as they are asked for."""

    def __init__(self, folder: Path, config: dict[str, Any], exact: bool = True) -> None:
        self.exact = exact
        self.made: dict[str, Any] = {}
        self.layers: dict[str, Any] = {}
        self.shared: dict[str, str] = {}
        self.arrays: dict[str, np.ndarray] = {}
        self.halves: set[str] = set()
        for file in _files(folder):
            arrays, halves = tensors.read(file)
            self.arrays |= arrays
            self.halves |= halves
        if (folder / "compressed.json").is_file():
            spec = _json(folder / "compressed.json")
            self.layers, self.shared = spec["layers"], spec["shared"]
        if config.get("tie_word_embeddings") and not self.has("lm_head"):
            self.tied = "model.embed_tokens"
        else:
            self.tied = ""

    def has(self, name: str) -> bool:
        return name in self.layers or f"{name}.weight" in self.arrays

    def linear(self, name: str) -> Any:
        """The weight called `name`; the same object for a shared one."""
        name = self.tied if name == "lm_head" and self.tied else name
        if name not in self.made:
            self.made[name] = self._linear(name)
        return self.made[name]

    def _linear(self, name: str) -> Any:
        if name in self.layers:
            parts = self._state(f"{name}.quantized.")
            bias = self.numbers(f"{name}.bias", needed=False)
            return native.from_spec(self.layers[name]["weight"], parts, bias, exact=self.exact)
        codes = self.arrays[f"{name}.weight"]
        if codes.ndim != 2:
            raise CompressError(f"'{name}' is no matrix")
        bias = self.numbers(f"{name}.bias", needed=False)
        if codes.dtype == np.int8:
            return native.rows8(codes, self._finite(f"{name}.weight.scale"), bias)
        if codes.dtype == np.uint16 and f"{name}.weight" not in self.halves or codes.dtype.kind not in "fu":
            raise Unsupported(f"'{name}' holds {codes.dtype} numbers")
        if codes.dtype.kind == "f" and codes.size and max(codes.max(), -codes.min()) >= LARGEST_HALF:
            raise Unsupported(f"'{name}' holds numbers beyond fp16")
        return native.dense(codes, bias)

    def heads(self, count: int) -> Iterator[tuple[str, tuple[int, ...], np.ndarray]]:
        """(name, shape, its first `count` numbers as fp32) of every tensor that torch's state of this model has."""
        stored = {n: n for n in self.arrays if not n.endswith(".weight.scale")} | self.shared
        if self.tied and self.tied in (n.removesuffix(".weight") for n in stored):
            stored["lm_head.weight"] = f"{self.tied}.weight"
        for name, owner in stored.items():
            array, scale = self.arrays[owner], self.arrays.get(f"{owner}.scale")
            head = array.reshape(-1)[:count]
            head = native._floats(head) if owner in self.halves else head.astype(np.float32)
            if scale is not None:  # 8-bit rows
                head = head * native._floats(scale[: -(-count // array.shape[1])]).repeat(array.shape[1])[:count]
            yield name, array.shape, head

    def _state(self, prefix: str) -> dict[str, np.ndarray]:
        """The tensors below a prefix, those held elsewhere too. Raises CompressError for numbers that are not finite."""
        owners = {n: n for n in self.arrays if n.startswith(prefix)}
        owners |= {n: owner for n, owner in self.shared.items() if n.startswith(prefix)}
        return {name[len(prefix) :]: self._finite(owner) for name, owner in owners.items()}

    def numbers(self, name: str, needed: bool = True) -> np.ndarray | None:
        """A vector as fp32. Raises CompressError for numbers that are not finite."""
        if not needed and name not in self.arrays:
            return None
        return native._floats(self._finite(name))

    def _finite(self, name: str) -> np.ndarray:
        array = self.arrays[name]
        if name in self.halves:
            finite = ((array & 0x7F80) != 0x7F80).all()  # an exponent of ones is no number
        else:
            finite = array.dtype.kind != "f" or np.isfinite(array).all()
        if not finite:
            raise CompressError(f"tensor '{name}' holds numbers that are not finite")
        return array


def _files(folder: Path) -> list[Path]:
    for single in ("compressed.safetensors", "rows8.safetensors", "model.safetensors"):
        if (folder / single).is_file():
            return [folder / single]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return [folder / name for name in sorted(set(_json(index)["weight_map"].values())) if Path(name).name == name]
    raise Unsupported(f"'{folder}' has no safetensors files of a kind that is read natively")


def _json(file: Path) -> dict[str, Any]:
    try:
        made = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(made, dict):
            raise ValueError("no object")
        return made
    except (OSError, ValueError, RecursionError) as error:
        raise CompressError(f"'{file}' is damaged or missing: {type(error).__name__}") from error


def _shape(config: dict[str, Any], context: int) -> dict[str, Any]:
    """The sizes that the extension wants, from a transformers config. Raises Unsupported."""
    family = config.get("model_type")
    if family not in FAMILIES:
        raise Unsupported(f"models of the type '{family}' run on torch: the native decoder knows {', '.join(FAMILIES)}")
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise Unsupported(f"the activation '{config['hidden_act']}' runs on torch")
    if config.get("quantization_config"):
        raise Unsupported(f"weights in the format '{config['quantization_config'].get('quant_method')}' run on torch")
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    frequencies, rotary_scale = _rotary(config, head_dim)
    window = config.get("sliding_window") or 0
    if family.startswith("qwen") and not config.get("use_sliding_window"):
        window = 0
    if window and len(set(config.get("layer_types") or ())) > 1:
        raise Unsupported("windows of attention that differ between layers run on torch")
    most = config.get("max_position_embeddings", 2048)
    return {
        "vocab": config["vocab_size"], "hidden": config["hidden_size"], "layers": config["num_hidden_layers"],
        "heads": heads, "kv_heads": config.get("num_key_value_heads") or heads, "head_dim": head_dim,
        "ffn": config["intermediate_size"], "context": min(context or MOST_CONTEXT, most), "window": window,
        "eps": config.get("rms_norm_eps", 1e-6), "frequencies": frequencies, "rotary_scale": rotary_scale,
    }  # fmt: skip


def _rotary(config: dict[str, Any], head_dim: int) -> tuple[list[float], float]:
    """(radians a position of each rotated pair, factor of cosines and sines): default, linear, Llama 3, YaRN."""
    rope = dict(config.get("rope_scaling") or {}) | dict(config.get("rope_parameters") or {})
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
    part = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    size = int(head_dim * part)
    plain = 1.0 / theta ** (np.arange(0, size, 2, dtype=np.float64) / size)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return plain.tolist(), 1.0
    factor = float(rope.get("factor", 1.0))
    if kind == "linear":
        return (plain / factor).tolist(), 1.0
    original = (
        rope.get("original_max_position_embeddings")
        or config.get("original_max_position_embeddings")
        or config["max_position_embeddings"]
    )
    if kind == "llama3":
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        smooth = (original * plain / (2 * math.pi) - low) / (high - low)
        smooth = smooth.clip(0, 1)
        return ((1 - smooth) * plain / factor + smooth * plain).tolist(), 1.0
    if kind == "yarn":  # arXiv:2309.00071

        def place(turns: float) -> float:
            return size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = place(rope.get("beta_fast") or 32), place(rope.get("beta_slow") or 1)
        if rope.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, size - 1)
        ramp = ((np.arange(size // 2) - low) / max(high - low, 0.001)).clip(0, 1)
        mscale = rope.get("attention_factor")
        if mscale is None and (rope.get("mscale") or rope.get("mscale_all_dim")):
            raise Unsupported("YaRN with mscale runs on torch")
        mscale = mscale if mscale is not None else (0.1 * math.log(factor) + 1 if factor > 1 else 1.0)
        return (plain / factor * ramp + plain * (1 - ramp)).tolist(), float(mscale)
    raise Unsupported(f"positions of the type '{kind}' run on torch")


def _build(shape: dict[str, Any], weights: Weights, config: dict[str, Any]) -> Any:
    """The extension's model."""
    layers = []
    for i in range(shape["layers"]):
        at = f"model.layers.{i}"
        qkv = (
            ["self_attn.qkv_proj"]
            if weights.has(f"{at}.self_attn.qkv_proj")
            else [f"self_attn.{p}_proj" for p in "qkv"]
        )
        up = ["mlp.gate_up_proj"] if weights.has(f"{at}.mlp.gate_up_proj") else ["mlp.gate_proj", "mlp.up_proj"]
        norms = [weights.numbers(f"{at}.self_attn.{part}_norm.weight", needed=False) for part in "qk"]
        layers.append(
            {
                "qkv": [weights.linear(f"{at}.{name}") for name in qkv],
                "out": weights.linear(f"{at}.self_attn.o_proj"),
                "gate_up": [weights.linear(f"{at}.{name}") for name in up],
                "down": weights.linear(f"{at}.mlp.down_proj"),
                "attention_norm": weights.numbers(f"{at}.input_layernorm.weight").tolist(),
                "ffn_norm": weights.numbers(f"{at}.post_attention_layernorm.weight").tolist(),
                "q_norm": [] if norms[0] is None else norms[0].tolist(),
                "k_norm": [] if norms[1] is None else norms[1].tolist(),
            }
        )
    norm = weights.numbers("model.norm.weight").tolist()
    return native._kernels.Model(shape, weights.linear("model.embed_tokens"), weights.linear("lm_head"), norm, layers)


def _attach(weights: Weights, adapter: Path) -> None:
    """Add a peft LoRA adapter to the weights. Raises Unsupported for what is more than LoRA on linear layers."""
    for name, factors in read_lora(adapter).items():
        if name not in weights.made or name in ("lm_head", "model.embed_tokens"):
            raise Unsupported(f"the adapter changes '{name}'")
        weights.made[name].add_low_rank(factors.A, factors.B, factors.scale)
