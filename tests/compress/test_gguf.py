"""GGUF: what we write, the gguf package reads and llama.cpp runs, with the same tokens and the same predictions."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from compress.__main__ import main as compress
from compress.checkpoint import load_model
from compress.export import main
from compress.formats.gguf_vocabulary import BYTES, PROBES, SPLITTINGS, nearest, split_as
from tests.compress.conftest import DATA, mail_text

pytest.importorskip("gguf", reason="gguf is not installed: nothing is written")
SPECIAL = ["<s>", "<|end|>", "<|user|>"]
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES |= {"num_hidden_layers": 3, "max_position_embeddings": 128, "pad_token_id": None, "vocab_size": 520}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"rope_type": "longrope", "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], "short_factor": [1.0] * 8}
YARN = {"rope_type": "yarn", "factor": 4.0}
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
ROPE = {"rope_theta": 10000.0, "original_max_position_embeddings": 32}
MODELS = {  # what each has that the others have not
    "llama": {"attention_bias": True, "mlp_bias": True, "head_dim": 32},
    "llama, tied": {"tie_word_embeddings": True},
    "llama, llama3": {"rope_parameters": ROPE | LLAMA3},
    "llama, linear": {"rope_parameters": ROPE | {"rope_type": "linear", "factor": 2.0}},
    "mistral": {"sliding_window": 48},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3, yarn": {"head_dim": 32, "rope_parameters": ROPE | YARN},
    "phi3": {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    "phi3, longrope": {"rope_parameters": ROPE | LONG, "original_max_position_embeddings": 32},
    "gemma2": {"sliding_window": 8, "head_dim": 32, "query_pre_attn_scalar": 32, "layer_types": KINDS},
    "gemma3_text": {
        "sliding_window": 8,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "layer_types": KINDS,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
}


def model(case: str, seed: int = 0, **changes: object) -> nn.Module:
    """A tiny model with every parameter at random, norms and biases too."""
    torch.manual_seed(seed)
    kind = case.partition(",")[0]
    config = CONFIG_MAPPING[kind](**SIZES | {"bos_token_id": 0, "eos_token_id": 1} | MODELS[case] | changes)
    net = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in net.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return net


def byte_level(name: str) -> PreTrainedTokenizerBase:
    """A byte-level BPE of 500 tokens, learnt from mail, that splits like one of llama.cpp's."""
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = split_as(empty(), SPLITTINGS[name]).pre_tokenizer
    bare.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet)
    bare.train_from_iterator([mail_text()[:20_000], *PROBES], trainer)
    bare.add_tokens([AddedToken("<note>", normalized=False)])
    written = json.loads(bare.to_str())
    written["model"]["ignore_merges"] = SPLITTINGS[name].whole
    return wrapped(Tokenizer.from_str(json.dumps(written)))


def empty() -> Tokenizer:
    return Tokenizer(models.BPE())


def sentencepiece(*first: normalizers.Normalizer) -> PreTrainedTokenizerBase:
    """A BPE with a token for each byte and ▁ for a space, as Llama 2, Mistral and Gemma have."""
    bare = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    bare.normalizer = normalizers.Sequence([*first, normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bare.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    known = [*SPECIAL, "<unk>", *BYTES]
    trainer = trainers.BpeTrainer(vocab_size=510, special_tokens=known, max_token_length=8)
    bare.train_from_iterator([line for line in mail_text()[:20_000].split(". ")], trainer)
    written = json.loads(bare.to_str())
    written["added_tokens"] = [t for t in written["added_tokens"] if t["content"] in known[:4]]
    return wrapped(Tokenizer.from_str(json.dumps(written)), unk_token="<unk>")


def wrapped(bare: Tokenizer, **more: str) -> PreTrainedTokenizerBase:
    bare.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bare, bos_token="<s>", eos_token="<|end|>", clean_up_tokenization_spaces=False,
        chat_template="{{ messages[0]['content'] }}<|end|>", **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def qwen2_tokens() -> PreTrainedTokenizerBase:
    return byte_level("qwen2")


def saved(folder: Path, net: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Path:
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def exported(folder: Path, kind: str = "F32", *more: str) -> Path:
    """The file that the command writes."""
    out = folder.with_name(f"{folder.name}-{kind}.gguf")
    out.unlink(missing_ok=True)
    assert main([str(folder), "--format", "gguf", "--type", kind, "--out", str(out), *more]) == 0
    return out


class Llama:
    """A file in llama.cpp."""

    def __init__(self, path: Path) -> None:
        import llama_cpp

        self.net = llama_cpp.Llama(str(path), n_ctx=256, n_threads=1, logits_all=True, verbose=False)

    def logits(self, ids: list[int]) -> Tensor:
        """(T, vocabulary)"""
        self.net.reset()
        self.net.eval(ids)
        return torch.tensor(self.net.scores[: len(ids)])

    def ids(self, text: str) -> list[int]:
        return self.net.tokenize(text.encode(), add_bos=True, special=True)

    def text(self, ids: list[int]) -> str:
        return self.net.detokenize(ids, special=True).decode()


@pytest.fixture
def llama() -> type[Llama]:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: llama.cpp is not tried")
    return Llama


@torch.no_grad()
def predicted(net: nn.Module, ids: list[int]) -> Tensor:
    return net(torch.tensor([ids])).logits[0]


def kl(found: Tensor, wanted: Tensor) -> float:
    """Nats a token."""
    logs = found.log_softmax(-1), wanted.log_softmax(-1)
    return nn.functional.kl_div(*logs, log_target=True, reduction="none").sum(-1).mean().item()


@pytest.mark.parametrize("case", MODELS)
def test_llama_cpp_predicts_what_transformers_predicts(case: str, qwen2_tokens, llama, tmp_path: Path):
    net = model(case)
    file = llama(exported(saved(tmp_path / "net", net, qwen2_tokens)))
    ids = torch.randint(0, 500, (40,)).tolist()  # beyond every window and every original context
    found, wanted = file.logits(ids)[:, :520], predicted(net, ids)
    assert (found - wanted).norm() < 0.01 * wanted.norm(), "but for the cache, which llama.cpp keeps in fp16"


TEXTS = (
    *PROBES,
    "",
    " ",
    "\n\n",
    "x",
    "<|user|>\nHi<note> there  <|end|>\n",
    "a\u00a0b\u2003c\x00d",
    "1234567 'S 'LL don'T",
)


@pytest.mark.parametrize("name", SPLITTINGS)
def test_llama_cpp_splits_text_into_the_same_tokens(name: str, llama, tmp_path: Path):
    tokenizer = byte_level(name)
    assert nearest(tokenizer.backend_tokenizer)[1] == 1
    file = llama(exported(saved(tmp_path / "net", model("llama"), tokenizer), "F16"))
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert file.ids(text) == ids and ids[0] == 0, text
        assert file.text(ids[1:]) == text


def test_llama_cpp_knows_pieces_of_sentences(llama, tmp_path: Path):
    tokenizer = sentencepiece()
    file = llama(exported(saved(tmp_path / "net", model("mistral"), tokenizer)))
    for text in PROBES:
        assert file.ids(text) == tokenizer(text)["input_ids"]


def test_the_embedded_model_is_told_to_split_almost_alike(llama, tmp_path: Path, capsys):
    """llama.cpp has no splitting that keeps the second space after a full stop with the stop."""
    out = tmp_path / "base.gguf"
    assert main([str(DATA / "base"), "--format", "gguf", "--out", str(out)]) == 0
    assert "splits text almost as the model's tokenizer does: 99." in capsys.readouterr().out
    file, net, tokenizer = llama(out), load_model(DATA / "base"), AutoTokenizer.from_pretrained(DATA / "base")
    mail = mail_text()[:4000].replace(".  ", ". ")
    ids = tokenizer(mail)["input_ids"][:250]
    assert file.ids(mail)[:250] == ids
    assert file.ids("Done.  Next") != tokenizer("Done.  Next")["input_ids"]
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert file.ids(chat) == tokenizer(chat)["input_ids"]
    assert file.net.metadata["tokenizer.chat_template"] == tokenizer.chat_template and file.net.token_eos() == 4
    assert kl(file.logits(ids), predicted(net, ids)) < 1e-5


@pytest.fixture(scope="module")
def wide(qwen2_tokens, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose sizes fill llama.cpp's blocks of 256."""
    net = model("qwen2", hidden_size=256, intermediate_size=512, num_hidden_layers=2)
    return saved(tmp_path_factory.mktemp("wide") / "net", net, qwen2_tokens)


def test_fewer_bits_make_smaller_files_that_predict_worse(wide: Path, llama, capsys):
    ids = torch.randint(0, 500, (60,)).tolist()
    wanted, sizes, losses = predicted(load_model(wide), ids), [], []
    for kind in ("F32", "BF16", "Q8_0", "Q4_K_M", "Q2_K"):
        file = exported(wide, kind)
        sizes.append(file.stat().st_size)
        losses.append(kl(llama(file).logits(ids)[:, :520], wanted))
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 0.3 * sizes[1]
    assert losses == sorted(losses) and losses[0] < 1e-4 and losses[2] < 0.1


def test_a_type_that_has_to_know_its_inputs_is_told_them(wide: Path, llama, tmp_path: Path):
    """By a text, or else by the model's own samples."""
    text = tmp_path / "mail.txt"
    text.write_text(mail_text()[:20_000], encoding="utf-8")
    wanted = load_model(wide).model.layers[1].mlp.down_proj.weight.detach()
    for more in (["--sequences", "2"], ["--sequences", "8", "--calibration", str(text)]):
        file = exported(wide, "IQ2_XS", *more)
        assert file.stat().st_size < 6e5 and llama(file).logits([1, 2, 3]).isfinite().all()
        assert (read(file)["blk.1.ffn_down.weight"] - wanted).norm() < 0.5 * wanted.norm()


def test_what_mail_brings_to_each_layer_makes_two_bits_better(llama, tmp_path: Path):
    text, tokenizer = tmp_path / "mail.txt", AutoTokenizer.from_pretrained(DATA / "base")
    text.write_text(mail_text()[:60_000], encoding="utf-8")
    ids = tokenizer(mail_text()[-4000:])["input_ids"][:250]
    wanted = predicted(load_model(DATA / "base"), ids)
    losses = []
    for more in ([], ["--sequences", "16", "--calibration", str(text)]):
        out = tmp_path / "base.gguf"
        assert main([str(DATA / "base"), "--format", "gguf", "--type", "Q2_K", "--out", str(out), *more]) == 0
        losses.append(kl(llama(out).logits(ids), wanted))
        out.unlink()
    assert losses[1] < 0.9 * losses[0]


def compressed(folder: Path, case: str, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A model at 2 bits a weight."""
    whole = saved(folder / "net", model(case), tokenizer)
    arguments = [str(whole), "--method", "trellis", "--bits", "2", "--out", str(folder / "small")]
    assert compress([*arguments, "--sequences", "4", "--length", "16"]) == 0
    return folder / "small"


@pytest.fixture(scope="module")
def small(qwen2_tokens, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compressed(tmp_path_factory.mktemp("small"), "llama", qwen2_tokens)


@pytest.mark.parametrize("case", ["llama", "llama, tied", "gemma3_text"])
def test_a_compressed_model_is_decoded(case: str, qwen2_tokens, llama, tmp_path: Path):
    small, ids = compressed(tmp_path, case, qwen2_tokens), torch.randint(0, 500, (40,)).tolist()
    found, wanted = llama(exported(small)).logits(ids)[:, :520], predicted(load_model(small), ids)
    assert (found - wanted).norm() < 0.01 * wanted.norm()


def read(file: Path) -> dict[str, Tensor]:
    """The matrices and vectors of a file, as the gguf package decodes them."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    return {t.name: torch.tensor(dequantize(t.data, t.tensor_type)) for t in GGUFReader(file).tensors}


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_the_gguf_package_reads_the_decoded_weights(kind: str, small: Path):
    net, found = load_model(small), read(exported(small, kind))
    layer = net.model.layers[1]
    wanted = {
        "token_embd.weight": net.model.embed_tokens.weight,
        "output.weight": net.lm_head.weight,
        "blk.1.ffn_down.weight": layer.mlp.down_proj.weight,
        "blk.1.attn_output.bias": layer.self_attn.o_proj.bias,
        "blk.1.attn_norm.weight": layer.input_layernorm.weight,
    }
    for name, tensor in wanted.items():
        assert torch.allclose(found[name], tensor.detach(), rtol=1e-2 if kind == "BF16" else 1e-3, atol=1e-6), name
    q, rows = layer.self_attn.q_proj.weight.detach(), found["blk.1.attn_q.weight"]
    assert torch.allclose(rows[[0, 1, 2, 32]], q[[0, 16, 1, 32]], rtol=1e-2), "neighbours turn together, head by head"


def test_types_of_llama_cpp_are_read_by_the_gguf_package(wide: Path, llama):
    net, found = load_model(wide), read(exported(wide, "Q4_0"))
    wanted = net.model.layers[0].mlp.up_proj.weight.detach()
    assert (found["blk.0.ffn_up.weight"] - wanted).norm() < 0.1 * wanted.norm()


def test_the_file_says_what_it_is(small: Path, qwen2_tokens):
    from gguf import GGUFReader

    fields = {name: field.contents() for name, field in GGUFReader(exported(small, "F16")).fields.items()}
    assert fields["general.architecture"] == "llama" and fields["general.file_type"] == 1
    assert fields["llama.attention.head_count_kv"] == 2 and fields["llama.rope.dimension_count"] == 32
    assert fields["tokenizer.ggml.pre"] == "qwen2" and fields["tokenizer.ggml.add_bos_token"] is True
    assert fields["tokenizer.chat_template"] == qwen2_tokens.chat_template
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert tokens[2] == "<|user|>" and kinds[2] == 3 and tokens[-1] == "[unused 519]" and kinds[-1] == 5
    assert kinds[tokens.index("<note>")] == 4 and kinds[tokens.index("a")] == 1


def test_a_window_that_llama_cpp_does_not_know_ends_the_context(qwen2_tokens, tmp_path: Path):
    from gguf import GGUFReader

    file = exported(saved(tmp_path / "net", model("mistral"), qwen2_tokens))
    assert GGUFReader(file).fields["llama.context_length"].contents() == 48


def words() -> PreTrainedTokenizerBase:
    """A byte-level BPE that cuts a text after every second character."""
    bare = byte_level("qwen2").backend_tokenizer
    two = pre_tokenizers.Split(Regex(r"[\s\S][\s\S]?"), "isolated")
    bare.pre_tokenizer = pre_tokenizers.Sequence(
        [two, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return wrapped(bare)


def lowered() -> PreTrainedTokenizerBase:
    return sentencepiece(normalizers.Lowercase())


def pieces() -> PreTrainedTokenizerBase:
    return wrapped(Tokenizer(models.WordLevel({"<s>": 0, "a": 1}, unk_token="<s>")))


MISTAKES = {
    "an unknown type": ("llama", {}, "qwen2", "Q4_X", "unknown type 'Q4_X': choose one of F32, F16, "),
    "an unknown architecture": ("gpt2", {}, "qwen2", "F16", "a 'gpt2' has no GGUF here: choose one of llama, mistral"),
    "an unknown activation": ("llama", {"hidden_act": "gelu"}, "qwen2", "F16", "its activation is gelu, not silu"),
    "an unknown RoPE": ("qwen2", {"rope_parameters": ROPE | LLAMA3}, "qwen2", "F16", "no RoPE scaling 'llama3'"),
    "an unknown scale": ("gemma2", {"query_pre_attn_scalar": 99}, "qwen2", "F16", "attention's scale is 99, not 32"),
    "an unknown cap": ("gemma3_text", {"attn_logit_softcapping": 9.0}, "qwen2", "F16", "its attention is capped"),
    "an untied head": ("gemma2", {"tie_word_embeddings": False}, "qwen2", "F16", "its head is not the embedding"),
    "too few rows": (
        "llama",
        {"vocab_size": 300},
        "qwen2",
        "F16",
        "the tokenizer has 501 tokens, the model's embedding 300",
    ),
    "a splitting of its own": ("llama", {}, words, "F16", "none of llama.cpp's pre-tokenizers splits text as this"),
    "a normalizer": ("llama", {}, lowered, "F16", "no 'Lowercase' before SentencePiece's BPE"),
    "another kind of tokenizer": ("llama", {}, pieces, "F16", "neither byte-level BPE nor SentencePiece's BPE"),
    "no tokenizer": ("llama", {}, None, "F16", "holds no tokenizer that loads"),
}
MODELS_TOO = {"gpt2": {"n_layer": 1, "n_embd": 64, "n_head": 2}}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_sentence_and_leaves_nothing(case: str, qwen2_tokens, tmp_path: Path, monkeypatch, capsys):
    kind, changes, tokens, to, sentence = MISTAKES[case]
    monkeypatch.setitem(MODELS, "gpt2", MODELS_TOO["gpt2"])
    model(kind, **changes).save_pretrained(tmp_path / "net")
    if tokens:
        (qwen2_tokens if tokens == "qwen2" else tokens()).save_pretrained(tmp_path / "net")
    refused([str(tmp_path / "net"), "--type", to, "--out", str(tmp_path / "out.gguf")], sentence, capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["net"]


def refused(arguments: list[str], sentence: str, capsys) -> None:
    capsys.readouterr()
    assert main(["--format", "gguf", *arguments]) == 1
    said = capsys.readouterr()
    assert sentence in said.err.splitlines()[-1] and said.err.count("error: ") == 1 and not said.out


def test_a_number_beyond_half_precision_asks_for_another_type(qwen2_tokens, tmp_path: Path, capsys):
    net = model("llama")
    net.model.layers[0].mlp.up_proj.weight.data[3, 5] = 1e5
    saved(tmp_path / "net", net, qwen2_tokens)
    refused([str(tmp_path / "net"), "--out", str(tmp_path / "out.gguf")], "choose BF16 or F32", capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["net"]
    assert read(exported(tmp_path / "net", "BF16"))["blk.0.ffn_up.weight"][3, 5] == pytest.approx(1e5, rel=0.01)


def test_a_file_that_is_there_stays(wide: Path, tmp_path: Path, capsys):
    (tmp_path / "mine.gguf").write_text("mine")
    refused([str(wide), "--out", str(tmp_path / "mine.gguf")], "exists: name a new file", capsys)
    assert (tmp_path / "mine.gguf").read_text() == "mine"


@pytest.mark.parametrize(("package", "kind"), [("gguf", "F16"), ("llama_cpp", "Q4_K_M")])
def test_a_missing_package_is_named(package: str, kind: str, wide: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)  # what Python itself takes for "not installed"
    refused([str(wide), "--type", kind, "--out", str(tmp_path / "x.gguf")], "pip install 'panza[llama]'", capsys)
    assert not list(tmp_path.iterdir())


def test_what_llama_cpp_refuses_is_said_in_its_words(wide: Path, llama, tmp_path: Path, capsys):
    refused([str(wide), "--type", "NVFP4", "--out", str(tmp_path / "x.gguf")], "invalid output file type", capsys)
    assert not list(tmp_path.iterdir())


def test_what_belongs_to_gguf_goes_with_no_other_format(wide: Path, tmp_path: Path):
    with pytest.raises(SystemExit) as left:
        main([str(wide), "--format", "plain", "--type", "F16", "--out", str(tmp_path / "out")])
    assert left.value.code == 2
