"""What our drafts are measured beside: llama.cpp through llama-cpp-python, and transformers' generate. See decode.py."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

CONTEXT = 4096  # tokens of llama.cpp's cache; ours grows as it is used
HEAD = "Q4_0"  # both ends of the vocabulary, as ours have 4 bits


def write_gguf(file: Path, config: dict[str, Any], kind: str) -> None:
    """A Llama of this config without a vocabulary, all of whose rows are random ones of a type of kernels.rivals.KINDS."""
    import gguf

    from kernels.rivals import KINDS, quantized

    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = (config[key] * config["head_dim"] for key in ("num_attention_heads", "num_key_value_heads"))
    writer, chance = gguf.GGUFWriter(file, "llama"), np.random.default_rng(0)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    rows = {(D, k): quantized(k, D) for D, k in ((hidden, kind), (ffn, kind), (heads, kind), (hidden, HEAD))}

    def add(name: str, N: int, D: int, kind: str) -> None:
        of = rows[D, kind]
        data = of[chance.integers(0, len(of), N)]
        writer.add_tensor(f"{name}.weight", data, raw_dtype=gguf.GGMLQuantizationType(KINDS[kind]))

    def add_norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(hidden, np.float32))

    add("token_embd", config["vocab_size"], hidden, HEAD)
    add_norm("output_norm")
    for i in range(config["num_hidden_layers"]):
        add_norm(f"blk.{i}.attn_norm")
        add_norm(f"blk.{i}.ffn_norm")
        for name, N, D in (
            ("attn_q", heads, hidden),
            ("attn_k", kv_heads, hidden),
            ("attn_v", kv_heads, hidden),
            ("attn_output", hidden, heads),
            ("ffn_gate", ffn, hidden),
            ("ffn_up", ffn, hidden),
            ("ffn_down", hidden, ffn),
        ):
            add(f"blk.{i}.{name}", N, D, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    """A GGUF file in llama.cpp, with its own defaults but for the threads."""

    def __init__(self, file: Path, threads: int) -> None:
        from compress.llama_cpp import complaints, package

        complaints()
        self.c = c = package("llama_cpp")
        model = c.llama_model_load_from_file(str(file).encode(), c.llama_model_default_params())
        settings = c.llama_context_default_params()
        settings.n_ctx = min(CONTEXT, c.llama_model_n_ctx_train(model))
        settings.n_threads = settings.n_threads_batch = threads
        self.context = c.llama_init_from_model(model, settings)
        self.sampler = c.llama_sampler_init_greedy()

    def read(self, ids: list[int]) -> None:
        """Forget everything, read these and choose the token after them."""
        self.c.llama_memory_clear(self.c.llama_get_memory(self.context), False)
        self._read(ids)

    def steps(self, count: int) -> list[float]:
        """Seconds of each of so many tokens more."""
        seconds = []
        for _ in range(count):
            begun = time.perf_counter()
            self._read([self.token])
            seconds.append(time.perf_counter() - begun)
        return seconds

    def report(self) -> dict[str, float]:
        return {}

    def _read(self, ids: list[int]) -> None:
        tokens = (self.c.llama_token * len(ids))(*ids)
        failed = self.c.llama_decode(self.context, self.c.llama_batch_get_one(tokens, len(ids)))
        assert not failed, f"llama_decode says {failed}"
        self.token = self.c.llama_sampler_sample(self.sampler, self.context, -1)


class HuggingFace:
    """transformers' generate on the embedded model, fp32, greedy."""

    def __init__(self, threads: int) -> None:
        import torch

        from panza.models import load_base

        torch.set_num_threads(threads)
        self.tensor, (self.net, _) = torch.tensor, load_base()

    def read(self, ids: list[int]) -> None:
        """Forget everything, read these and choose the token after them."""
        self.made = self._generate(self.tensor([ids]), 1)

    def steps(self, count: int) -> list[float]:
        """Seconds of each of so many tokens more."""
        stamps = Stamps()
        self.made = self._generate(
            self.made.sequences, count + 1, past_key_values=self.made.past_key_values, streamer=stamps
        )
        return [
            b - a for a, b in zip(stamps.at[1:], stamps.at[2:], strict=False)
        ]  # the prompt and the first one come at once

    def report(self) -> dict[str, float]:
        return {}

    def _generate(self, ids: Any, count: int, **more: Any) -> Any:
        sizes = {"max_new_tokens": count, "min_new_tokens": count}
        return self.net.generate(ids, do_sample=False, return_dict_in_generate=True, **sizes, **more)


class Stamps:
    """A streamer that notes when tokens come."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def put(self, tokens: Any) -> None:
        self.at.append(time.perf_counter())

    def end(self) -> None:
        pass
