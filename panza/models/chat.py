"""Chat messages to token ids and back, the same for training and for drafting. Knows tokenizers; knows no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from panza.prompt import Chat
from panza.types import UserError

FIXED_DATE = "26 Jul 2024"  # for templates that would write today's: a prompt is the same in training and next month


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

    def answered(self, chat: Chat, answer: str) -> str:
        """The text of prompt, answer and end of turn."""
        return self.prompt(chat) + self._break_specials(answer) + self.turn_end

    def encode_answered(self, chat: Chat, answer: str) -> tuple[list[int], list[bool]]:
        """(ids, mask) of prompt + answer + end of turn; the mask is True on tokens that begin in the answer or its end."""
        prompt, text = self.prompt(chat), self.answered(chat, answer)
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


PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")  # classes that do what tokenizer.json says, and no more


class PlainTokenizer:
    """What ChatTokenizer needs of a tokenizer, from tokenizer.json and the template alone: opens in milliseconds.

    `opens` says whether a directory's tokenizer is of that kind; transformers opens the others.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = _config(folder)
        named = {name: _content(config.get(f"{name}_token")) for name in ("bos", "eos", "pad", "unk")}
        self._named = {name: text for name, text in named.items() if text}
        self.eos_token = named["eos"]
        self.bos_token_id, self.eos_token_id, self.pad_token_id, _ = (
            None if text is None else self._tokenizer.token_to_id(text) for text in named.values()
        )
        more = [_content(t) for t in config.get("additional_special_tokens") or ()]
        self.all_special_tokens = [t for t in (*self._named.values(), *more) if t]
        template = folder / "chat_template.jinja"
        self.chat_template = template.read_text(encoding="utf-8") if template.is_file() else config.get("chat_template")
        self._added = {t.content: i for i, t in self._tokenizer.get_added_tokens_decoder().items()}

    @staticmethod
    def opens(folder: Path) -> bool:
        """Whether this class reads the tokenizer in `folder` as transformers would."""
        config = _config(folder)
        named = isinstance(config.get("chat_template") or "", str)
        return (folder / "tokenizer.json").is_file() and config.get("tokenizer_class") in PLAIN and named

    def get_added_vocab(self) -> dict[str, int]:
        return self._added

    def __call__(
        self, text: str, add_special_tokens: bool = False, return_offsets_mapping: bool = False
    ) -> dict[str, Any]:
        encoded = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return {"input_ids": encoded.ids} | ({"offset_mapping": encoded.offsets} if return_offsets_mapping else {})

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def apply_chat_template(self, chat: Chat, tokenize: bool = False, **values: Any) -> str:
        return render(self.chat_template, chat, self._named, values)


def open_tokenizer(folder: Path) -> Any:
    """The tokenizer in a directory, without transformers where that is not needed."""
    if PlainTokenizer.opens(folder):
        return PlainTokenizer(folder)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def render(template: str, chat: Chat, named: dict[str, str], values: dict[str, Any]) -> str:
    """The text of the messages, in the environment that transformers gives its templates.

    named: special tokens by their short names: bos, eos, ...
    """
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    made.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    made.globals["raise_exception"] = _refuse
    specials = {f"{name}_token": text for name, text in named.items()}
    return made.from_string(template).render(messages=chat, **specials, **values)


def _refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"'{file}' is damaged: {type(error).__name__}.") from error


def _content(token: Any) -> str | None:
    """A special token's text: it stands there as a string or as an object."""
    return token["content"] if isinstance(token, dict) else token
