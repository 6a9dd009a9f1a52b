"""The one seam to language models: load base (+ adapter), count tokens, generate text from chat messages.

A backend is a class with `encode` and `generate`. Knows transformers and peft; knows no mail.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from panza.home import shipped
from panza.prompt import Chat
from panza.types import UserError

EMBEDDED = shipped("base")
COMPRESSED = ("rows8.safetensors", "compressed.safetensors")  # files of the models that `compress` writes
FIXED_DATE = "26 Jul 2024"  # for templates that would write today's: a prompt is the same in training and next month


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose the next token. temperature 0 is greedy; seed matters only above it."""

    max_tokens: int = 300
    temperature: float = 0.0
    top_p: float = 0.9
    seed: int = 0


class Model(Protocol):
    """What drafting needs of a backend."""

    name: str
    context: int  # tokens that prompt and answer may take together

    def encode(self, chat: Chat) -> list[int]:
        """The prompt's token ids, with the mark after which the answer starts."""

    def generate(self, chat: Chat, sampling: Sampling, stopped: Callable[[], bool]) -> Iterator[str]:
        """The answer piece by piece, a token at a time; ends by itself, at max_tokens or when `stopped()`."""


def load(base: str = "", adapter: Path | None = None, fetch: bool = False) -> TorchModel:
    """The model to draft with. base, fetch: as in `load_base`. adapter: a folder that `panza train` wrote."""
    net, tokenizer = load_base(base, fetch)
    if adapter is not None:
        from panza.adapters import attach_saved

        net = attach_saved(net, adapter)
    return TorchModel(net.eval(), ChatTokenizer(tokenizer), base_id(base))


def base_id(base: str) -> str:
    """The name that reports and adapters carry for a base."""
    return base or "panza-base"


def load_base(base: str = "", fetch: bool = False) -> tuple[Any, Any]:
    """(transformers causal LM, fast tokenizer) on the GPU if there is one. Raises UserError if there is none.

    base: "" for the embedded model, a directory, or a hub name.
    fetch: a hub name that is not in the local cache may be downloaded; nothing else ever touches the network.
    """
    settle_libraries()
    where = _place(base)
    try:
        net, tokenizer = _load(where, local=True)
    except _LOAD_ERRORS as error:
        if Path(where).is_dir() or not fetch:
            raise _no_model(where, base, error) from error
        try:
            with hub_allowed():
                net, tokenizer = _load(where, local=False)
        except _LOAD_ERRORS as error:
            raise _no_model(where, base, error) from error
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"The model '{base}' has no fast tokenizer (tokenizer.json), which Panza needs to mask prompts."
        )
    return net.to(_device()), tokenizer


_LOAD_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, AttributeError)


def _place(base: str) -> str:
    """The directory or hub name that `base` means. Raises UserError if it can be neither."""
    path = Path(base).expanduser() if base else EMBEDDED
    if path.is_dir():
        return str(path)
    typed_path = base.startswith((".", "/", "~")) or base.count("/") != 1 or Path(base.split("/")[0]).is_dir()
    if not base or typed_path:
        raise UserError(
            f"There is no model at '{base or path}': give a directory with a Hugging Face model, a hub name such as "
            "Qwen/Qwen3-0.6B, or '' for the embedded model."
        )
    return base


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _load(where: str, local: bool) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar() if local else transformers_logging.enable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=local)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    if any((Path(where) / name).exists() for name in COMPRESSED):  # asked before compress, which loads torch at import
        return _load_compressed(Path(where), dtype), tokenizer
    return AutoModelForCausalLM.from_pretrained(where, dtype=dtype, local_files_only=local), tokenizer


def _load_compressed(folder: Path, dtype: Any) -> Any:
    """A model that `compress` wrote, its weights decoded once."""
    from compress.checkpoint import load_model
    from compress.errors import CompressError
    from compress.linear import quantized_layers

    try:
        net = load_model(folder, dtype, _device())
    except CompressError as error:
        raise UserError(f"{error}.") from error
    for layer in quantized_layers(net).values():
        layer.hold(dtype)
    return net


def _no_model(where: str, base: str, error: Exception) -> UserError:
    cached = (
        ""
        if Path(where).is_dir()
        else " is not on this computer (`--base` with its name fetches it; a gated one needs `hf auth login`), or"
    )
    return UserError(
        f"The model '{base or where}'{cached} could not be loaded ({type(error).__name__}): give a directory with a "
        "Hugging Face causal language model, a hub name, or '' for the embedded model."
    )


def settle_libraries() -> None:
    """Keep the libraries off the network and off the terminal, and their threads polite. Called before torch is imported.

    Threads that spin while they wait make a model ten times slower as soon as another program wants the cores.
    """
    os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1", TOKENIZERS_PARALLELISM="false")
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "OMP_WAIT_POLICY": "passive",
    }.items():
        os.environ.setdefault(name, value)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


@contextmanager
def hub_allowed() -> Iterator[None]:
    """Let the hub library use the network inside the block."""
    import huggingface_hub.constants as constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = False
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


class ChatTokenizer:
    """Chat messages -> text -> ids, the same for training and for drafting.

    Strings that the tokenizer would read as special tokens are broken inside the messages, so that no mail can
    close its own turn.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        specials = {str(t) for t in tokenizer.get_added_vocab() if len(str(t)) > 2} | {
            str(t) for t in tokenizer.all_special_tokens
        }
        self._specials = sorted(specials, key=len, reverse=True)
        self.turn_end = self._turn_end()

    def prompt(self, chat: Chat) -> str:
        """The text of the messages, with the mark after which the answer starts."""
        chat = [{**m, "content": self._break_specials(m["content"])} for m in chat]
        return self._render(chat, add_generation_prompt=True)

    def encode(self, chat: Chat) -> list[int]:
        return self.tokenizer(self.prompt(chat), add_special_tokens=False)["input_ids"]

    def encode_answered(self, chat: Chat, answer: str) -> tuple[list[int], list[bool]]:
        """(ids, mask) of prompt + answer + end of turn; the mask is True on tokens that begin in the answer or its end."""
        prompt = self.prompt(chat)
        text = prompt + self._break_specials(answer) + self.turn_end
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return encoded["input_ids"], [end > start >= len(prompt) for start, end in encoded["offset_mapping"]]

    def encode_text(self, text: str) -> list[int]:
        """The ids of a plain text; none of them is special."""
        return self.tokenizer(self._break_specials(text), add_special_tokens=False)["input_ids"]

    @property
    def text_ends(self) -> frozenset[int]:
        """Tokens that stand between texts, where one has ended."""
        marks = (self.tokenizer.eos_token_id, self.tokenizer.bos_token_id, self.tokenizer.pad_token_id)
        return frozenset(i for i in marks if i is not None)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer: the ends of a text and the first token of the template's end of turn."""
        return self.text_ends | frozenset(self.tokenizer(self.turn_end, add_special_tokens=False)["input_ids"][:1])

    def _render(self, chat: Chat, **options: Any) -> str:
        from jinja2 import TemplateError

        if not self.tokenizer.chat_template:
            return "".join(f"{m['content']}\n\n" for m in chat)
        options |= {"tokenize": False, "enable_thinking": False, "date_string": FIXED_DATE}
        try:
            return self.tokenizer.apply_chat_template(chat, **options)
        except TemplateError:  # templates without a system role (Gemma): the user's turn carries it
            system, user, *rest = chat
            merged = [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]
            return self.tokenizer.apply_chat_template(merged, **options)

    def _turn_end(self) -> str:
        """What the template writes after an answer, found by rendering one."""
        probe = "PROBE ANSWER"
        chat = [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "u"},
            {"role": "assistant", "content": probe},
        ]
        if not self.tokenizer.chat_template:
            return self.tokenizer.eos_token or ""
        tail = self._render(chat).rsplit(probe, 1)[1]
        return tail.rstrip("\n") or self.tokenizer.eos_token or ""

    def _break_specials(self, text: str) -> str:
        for special in self._specials:
            if special in text:
                text = text.replace(special, f"{special[0]} {special[1:]}")
        return text


class TorchModel:
    """The transformers backend: any causal LM, CPU or GPU."""

    def __init__(self, net: Any, chat_tokenizer: ChatTokenizer, name: str) -> None:
        self.net, self.chat_tokenizer, self.name = net, chat_tokenizer, name
        self.context = int(getattr(net.config, "max_position_embeddings", 2048))
        self._one_at_a_time = threading.Lock()

    def encode(self, chat: Chat) -> list[int]:
        return self.chat_tokenizer.encode(chat)

    def generate(self, chat: Chat, sampling: Sampling, stopped: Callable[[], bool] = lambda: False) -> Iterator[str]:
        import torch

        ids = torch.tensor([self.encode(chat)], device=self.net.device)  # (1, T)
        generator = torch.Generator().manual_seed(sampling.seed)
        room = min(sampling.max_tokens, self.context - ids.shape[1])
        if room <= 0:
            raise UserError(
                f"The instruction is too long for '{self.name}', which reads {self.context} tokens: shorten it."
            )
        written: list[int] = []
        text = shown = ""
        cache = None
        with self._one_at_a_time:
            while len(written) < room and not stopped():
                step = ids if not written else torch.tensor([written[-1:]], device=self.net.device)
                with torch.inference_mode():
                    out = self.net(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache = out.past_key_values
                token = choose(out.logits[0, -1].float().cpu(), sampling, generator)
                if token in self.chat_tokenizer.stop_ids:
                    break
                written.append(token)
                text = self.chat_tokenizer.tokenizer.decode(written, skip_special_tokens=True)
                if not text.endswith("\ufffd"):  # half of a character: wait for its other bytes
                    yield text[len(shown) :]
                    shown = text
        if text != shown:
            yield text[len(shown) :]


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
