"""Small real things that tests share: a mailbox, a language model of some thousand weights."""

from __future__ import annotations

import os
import random
import zlib
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.utils import format_datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from compress import native

if TYPE_CHECKING:
    import torch

os.environ.update(
    OMP_WAIT_POLICY="passive", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", GRADIO_ANALYTICS_ENABLED="False"
)

# Only for an installation without a compiler: test_backends.py fails where there is one and the kernels are missing.
needs_kernels = pytest.mark.skipif(not native.available(), reason="installed without the native kernels")

ME = "mara.lindt@example.org"
FRIENDS = {
    "Anna Lee": "anna.lee@example.com",
    "Tom Ortega": "tom.ortega@example.com",
    "Priya Nair": "priya@example.net",
}
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def a_mailbox(path: Path, sent: int = 40, seed: int = 0, ids: str = "", first_year: int = 2024) -> Path:
    """An mbox: `sent` mails by ME, each answering a received one, all in one easily learnt voice."""
    chance = random.Random(seed)
    days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]
    things = ["budget", "review", "contract", "workshop", "invoice", "offsite", "launch", "report"]
    start = datetime(first_year, 1, 8, 9, 0, tzinfo=UTC)
    out = []
    for i in range(sent):
        (name, address), thing, day, hour = (
            chance.choice(list(FRIENDS.items())),
            chance.choice(things),
            chance.choice(days),
            chance.randint(8, 17),
        )
        when = start + timedelta(days=3 * i)
        asked = EmailMessage()
        asked["From"], asked["To"], asked["Subject"] = f"{name} <{address}>", f"Mara Lindt <{ME}>", f"The {thing} {i}"
        asked["Date"], asked["Message-ID"] = format_datetime(when), f"<ask-{ids}{i}@example.com>"
        asked.set_content(
            f"Hi Mara,\n\nwhen can we talk about the {thing}? It is number {100 + i}.\n\n{name.split()[0]}\n"
        )
        answer = EmailMessage()
        answer["From"], answer["To"], answer["Subject"] = (
            f"Mara Lindt <{ME}>",
            f"{name} <{address}>",
            f"Re: The {thing} {i}",
        )
        answer["Date"], answer["Message-ID"] = (
            format_datetime(when + timedelta(hours=2)),
            f"<answer-{ids}{i}@example.org>",
        )
        answer["In-Reply-To"] = answer["References"] = f"<ask-{ids}{i}@example.com>"
        answer.set_content(
            f"Hello {name.split()[0]},\n\nthe {thing} works on {day} at {hour}:00. Please bring number {100 + i}.\n\nAll the best,\nMara\n\n"
            f"On {when:%d %B %Y}, {name} wrote:\n> when can we talk about the {thing}?\n"
        )
        out += [asked, answer]
    path.write_bytes(b"".join(b"From x@example.com Mon Jan  8 09:00:00 2024\n" + m.as_bytes() + b"\n" for m in out))
    return path


@pytest.fixture(scope="session")
def mailbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_mailbox(tmp_path_factory.mktemp("mail") / "all.mbox")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory: byte-level BPE of 500 tokens and a two-layer Llama with random weights."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-base")
    specials = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = "Hello Anna, the review works on Thursday at 10:00. Please bring number 100. All the best, Mara. Instruction: From: To: Subject:"
    bpe.train_from_iterator([text] * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=1024, initializer_range=0.3, tie_word_embeddings=True, bos_token_id=0, eos_token_id=4, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> torch.Generator:
    """A generator with another seed in every run; a failing test prints it. PANZA_SEED sets it.

    Where CI is set it is the test's own, as hypothesis does it: there a change is judged, and by the same numbers twice.
    """
    import torch

    if "PANZA_SEED" in os.environ:
        seed = int(os.environ["PANZA_SEED"])
    elif os.environ.get("CI"):
        seed = zlib.crc32(request.node.nodeid.encode())
    else:
        seed = int.from_bytes(os.urandom(4), "little")
    print("seed", seed)
    return torch.Generator().manual_seed(seed)
