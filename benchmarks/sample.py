"""What drafting the mails of data/sample asks of a model: token ids of prompts, by the words of the real path. Loads no model."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from panza.assistant import Assistant
from panza.dataset import build
from panza.home import open_home, shipped
from panza.models import EMBEDDED, ChatTokenizer
from panza.models.chat import open_tokenizer
from panza.playback import PlaybackConfig

MOST_TOKENS = 640  # of prompt and answer, as in training


def drafting_prompts(count: int = 0, folder: Path = EMBEDDED) -> list[list[int]]:
    """Prompts that would lead to the first `count` sent mails (0: all): instructions by rules, mails retrieved by words alone.

    folder: whose tokenizer. The same prompts every time.
    """
    sample = shipped("sample")
    author = json.loads((sample / "author.json").read_text())
    tokenizer = ChatTokenizer(open_tokenizer(folder))
    with tempfile.TemporaryDirectory() as home:
        panza = Assistant(open_home(Path(home)), "")
        panza.import_mail([sample / "mail.mbox"], author["addresses"])
        panza.play_back(PlaybackConfig(tries=0))
        pairs = panza.pairs()[: count or None]
        examples = build(
            pairs, panza.store, panza.retriever, tokenizer, sender=panza.store.my_name, most_tokens=MOST_TOKENS
        )
        return [tokenizer.encode(example.chat) for example in examples]
