"""The transformers backend: any causal language model, on the CPU or a GPU; one draft or many at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from panza.models.base import Sampling, pieces, room_for_answer
from panza.models.chat import ChatTokenizer
from panza.prompt import Chat


class TorchModel:
    """The transformers backend: any causal LM, CPU or GPU."""

    backend = "torch"

    def __init__(self, net: Any, chat_tokenizer: ChatTokenizer, name: str) -> None:
        self.net, self.chat_tokenizer, self.name = net, chat_tokenizer, name
        self.context = int(getattr(net.config, "max_position_embeddings", 2048))
        self._one_at_a_time = threading.Lock()

    def encode(self, chat: Chat) -> list[int]:
        return self.chat_tokenizer.encode(chat)

    def generate(self, chat: Chat, sampling: Sampling, stopped: Callable[[], bool] = lambda: False) -> Iterator[str]:
        import torch

        ids = torch.tensor([self.encode(chat)], device=self.net.device)  # (1, T)
        room = room_for_answer(self.name, ids.shape[1], self.context, sampling.max_tokens)
        with self._one_at_a_time:
            yield from pieces(self._tokens(ids, sampling, room, stopped), self.chat_tokenizer)

    def _tokens(self, ids: Any, sampling: Sampling, room: int, stopped: Callable[[], bool]) -> Iterator[int]:
        """At most `room` tokens after ids (1, T)."""
        import torch

        generator = torch.Generator().manual_seed(sampling.seed)
        cache = None
        for _ in range(room):
            if stopped():
                return
            with torch.inference_mode():
                out = self.net(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            token = choose(out.logits[0, -1].float().cpu(), sampling, generator)
            if token in self.chat_tokenizer.stop_ids:
                return
            yield token
            ids = torch.tensor([[token]], device=self.net.device)


def choose(logits: Any, sampling: Sampling, generator: Any) -> int:
    """The next token. logits: (V,) fp32. Nucleus sampling (Holtzman et al. 2020); greedy at temperature 0."""
    import torch

    if sampling.temperature <= 0:
        return int(logits.argmax())
    probs, order = torch.softmax(logits / sampling.temperature, -1).sort(descending=True)
    keep = probs.cumsum(-1) - probs < sampling.top_p
    return int(order[torch.multinomial(probs * keep, 1, generator=generator)])


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model wrote after a prompt. ended: by itself, not at the limit."""

    text: str
    ended: bool


def generate_batch(
    model: TorchModel, chats: Sequence[Chat], sampling: Sampling, batch: int = 16
) -> Iterator[tuple[int, str]]:
    """(index, answer) for many chats; see `complete_batch`."""
    prompts = [model.encode(c) for c in chats]
    return ((i, answer.text) for i, answer in complete_batch(model, prompts, sampling, batch))


def complete_batch(
    model: TorchModel, prompts: Sequence[Sequence[int]], sampling: Sampling, batch: int = 16
) -> Iterator[tuple[int, Completion]]:
    """(index, completion) for many prompts, the long ones together, with greedy or sampled batches of left-padded rows."""
    import torch
    from transformers import GenerationConfig

    tokenizer, stops = model.chat_tokenizer.tokenizer, model.chat_tokenizer.stop_ids
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        longest = max(len(prompts[i]) for i in rows)
        ids = torch.tensor(
            [[pad] * (longest - len(prompts[i])) + [*prompts[i]] for i in rows], device=model.net.device
        )  # (B, T)
        mask = torch.tensor(
            [[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in rows], device=model.net.device
        )
        torch.manual_seed(sampling.seed)
        how = GenerationConfig(
            do_sample=sampling.temperature > 0,
            temperature=sampling.temperature or 1.0,
            top_p=sampling.top_p,
            top_k=0,
            repetition_penalty=1.0,
            max_new_tokens=max(1, min(sampling.max_tokens, model.context - longest)),
            eos_token_id=sorted(stops),
            pad_token_id=pad,
        )  # ours alone: a model's own defaults (repetition penalty) would make this text other than `generate`'s
        with torch.inference_mode():
            out = model.net.generate(input_ids=ids, attention_mask=mask, generation_config=how)
        for i, row in zip(rows, out[:, longest:].tolist(), strict=True):
            end = next((n for n, t in enumerate(row) if t in stops), None)
            text = tokenizer.decode(row[:end], skip_special_tokens=True).strip()
            yield i, Completion(text, end is not None)
