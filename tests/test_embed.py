"""The embedder's two ways to a vector: one text without torch, many with sentence-transformers, the same numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from panza.embed import FEW, MiniLM, gelu

TEXTS = [
    "review on Thursday", "", "   ", "Größe 混合 🙂 a\u0301", "word " * 500, "x" * 3000, "<mask> [CLS] </s>",
    "Please send the invoice for the Houston office to Anna before Friday, 10:30.\n\nThanks",
]  # fmt: skip


@pytest.mark.parametrize("tokens", [128, 16])
def test_one_text_and_many_give_the_same_vectors(tokens: int):
    alone, together = MiniLM(tokens), MiniLM(tokens)
    vectors = together(TEXTS)
    assert vectors.shape == (len(TEXTS), 384) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    single = np.concatenate([alone([text]) for text in TEXTS])
    assert single.dtype == np.float32 and np.abs(single - vectors).max() < 1e-5
    assert "_model" not in vars(alone), "the large library was not needed"
    assert alone(TEXTS[:FEW]).shape == (FEW, 384) and alone([]).shape == (0, 384)


def test_gelu_is_its_definition():
    x = np.linspace(-8, 8, 1001, dtype=np.float32)
    exact = [v * (1 + math.erf(v / 2**0.5)) / 2 for v in x.tolist()]
    assert np.abs(gelu(x) - exact).max() < 1e-6
