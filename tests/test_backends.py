"""The native backend in the product: the same prompts and words as torch, the same refusals, and no torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from compress import native
from panza import adapters, models
from panza.models import ChatTokenizer, Sampling, load, load_for_drafts
from panza.models.chat import PlainTokenizer
from panza.types import UserError
from tests.conftest import CHAT_TEMPLATE, needs_kernels

CHAT = [{"role": "system", "content": "You write mail."}, {"role": "user", "content": "Tell Anna: review on Thursday."}]
TEXTS = [
    "Hello Anna,\n\nthe review works.\n", "", " ", "\ufeffünïcödé 🙂 混合", "a\u0301 <|end|> <|user|>", "1,000.50 \t x" * 30, "<|assist", "\ud7ff\x00",
]  # fmt: skip


def trained(base: Path, folder: Path) -> Path:
    """An adapter whose factors are not zero."""
    from peft import get_peft_model_state_dict

    net = adapters.attach_lora(models.load_base(str(base))[0], 3, 6, 0.0)
    for name, tensor in get_peft_model_state_dict(net).items():
        tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
    plain = net.get_base_model()
    adapters.save(net, folder)
    (folder / "report.json").write_text(json.dumps({"base_hash": adapters.base_hash(models.load_base(str(base))[0])}))
    assert plain is not None
    return folder


def test_where_there_is_a_compiler_there_are_kernels():
    """Else the tests that need them would be skipped without a word."""
    wanted = shutil.which(os.environ.get("CXX", "c++")) and os.environ.get("PANZA_NATIVE") != "0"
    assert native.available() or not wanted


def test_kernels_that_do_not_load_are_an_error(tmp_path: Path):
    (tmp_path / "compress").mkdir()
    for name in ("__init__.py", "native.py"):
        shutil.copy(Path(native.__file__).parent / name, tmp_path / "compress")
    code = "import sys; sys.path[:0] = ['.']; sys.meta_path = [f for f in sys.meta_path if 'Scikit' not in type(f).__name__]; from compress import native; print(native.available())"

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)

    assert run().stdout.strip() == "False", "built without them"
    (tmp_path / "compress" / "_kernels.py").write_text("raise ImportError('a library is missing')")
    assert "a library is missing" in run().stderr


@pytest.mark.parametrize("where", ["embedded", "tiny"])
def test_the_plain_tokenizer_is_the_one_of_transformers(where: str, tiny_base: Path):
    from transformers import AutoTokenizer

    folder = models.EMBEDDED if where == "embedded" else tiny_base
    assert PlainTokenizer.opens(folder)
    ours, theirs = ChatTokenizer(PlainTokenizer(folder)), ChatTokenizer(AutoTokenizer.from_pretrained(folder))
    assert ours.turn_end == theirs.turn_end and ours.stop_ids == theirs.stop_ids and ours.text_ends == theirs.text_ends
    for text in TEXTS:
        chat = [CHAT[0], {"role": "user", "content": text}]
        assert ours.prompt(chat) == theirs.prompt(chat) and ours.encode(chat) == theirs.encode(chat)
        assert ours.encode_answered(chat, text) == theirs.encode_answered(chat, text)
        ids = ours.encode_text(text)
        assert ids == theirs.encode_text(text)
        decoded = [t.tokenizer.decode([*ids, *ours.stop_ids], skip_special_tokens=True) for t in (ours, theirs)]
        assert decoded[0] == decoded[1]


def test_a_tokenizer_with_more_to_it_is_left_to_transformers(tiny_base: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "LlamaTokenizer"}))
    assert not PlainTokenizer.opens(folder)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        PlainTokenizer.opens(folder)


def test_templates_see_what_transformers_shows_them(tiny_base: Path):
    from transformers import AutoTokenizer

    tokenizer = PlainTokenizer(tiny_base)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    tokenizer.chat_template = "{{ messages[0] | tojson }} {% for m in messages %}{% break %}{% endfor %}{{ eos_token }}"
    assert tokenizer.apply_chat_template(CHAT[:1]) == '{"role": "system", "content": "You write mail."} <|end|>'
    tokenizer.chat_template = "{{ bos_token }}{{ pad_token }}{{ unk_token }}"  # Llama 3's begins with its BOS
    theirs = AutoTokenizer.from_pretrained(tiny_base)
    theirs.chat_template = tokenizer.chat_template
    assert (
        tokenizer.apply_chat_template(CHAT) == theirs.apply_chat_template(CHAT, tokenize=False) == "<|endoftext|>" * 2
    )
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    from jinja2 import TemplateError

    with pytest.raises(TemplateError, match="no system role"):
        tokenizer.apply_chat_template(CHAT)


@needs_kernels
@pytest.mark.parametrize("with_adapter", [False, True])
def test_native_drafts_are_those_of_torch(with_adapter: bool, tiny_base: Path, tmp_path: Path):
    adapter = trained(tiny_base, tmp_path / "adapter") if with_adapter else None
    ours, why = load_for_drafts(str(tiny_base), adapter, backend="native")
    theirs = load(str(tiny_base), adapter)
    assert why == "" and type(ours).__name__ == "NativeModel" and ours.name == theirs.name
    assert ours.encode(CHAT) == theirs.encode(CHAT)
    texts = ["".join(m.generate(CHAT, Sampling(max_tokens=8), lambda: False)) for m in (ours, theirs)]
    assert texts[0] == texts[1] and texts[0]


@needs_kernels
def test_a_base_has_one_name_for_both_backends(tiny_base: Path, tmp_path: Path):
    from compress.model import Options, compress_model

    compress_model(tiny_base, tmp_path / "small", "rtn", 4, options=Options(sequences=2, length=64))
    for folder in (tiny_base, models.EMBEDDED, tmp_path / "small"):
        assert adapters.base_hash_of(folder) == adapters.base_hash(models.load_base(str(folder))[0])


@needs_kernels
def test_an_adapter_of_other_weights_is_refused(tiny_base: Path, tmp_path: Path):
    adapter = trained(tiny_base, tmp_path / "adapter")
    (adapter / "report.json").write_text(json.dumps({"base_hash": "0" * 32, "base": "another"}))
    with pytest.raises(UserError, match="was trained on other weights than 'another'"):
        load_for_drafts(str(tiny_base), adapter, backend="native")
    with pytest.raises(UserError, match="There is no adapter"):
        load_for_drafts(str(tiny_base), tmp_path, backend="native")


@needs_kernels
def test_what_native_does_not_know_is_drafted_by_torch_and_said(tiny_base: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps(config | {"rope_parameters": scaled}))
    model, why = load_for_drafts(str(folder))
    assert type(model).__name__ == "TorchModel" and "'dynamic' run on torch" in why
    with pytest.raises(UserError, match="The native backend cannot run this: positions of the type 'dynamic'"):
        load_for_drafts(str(folder), backend="native")


@needs_kernels
def test_a_damaged_model_is_one_sentence(tiny_base: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(UserError, match="damaged"):
        load_for_drafts(str(folder))


def test_an_unknown_backend_is_refused(tiny_base: Path):
    with pytest.raises(UserError, match="'fast' is no backend: choose one of auto, native, torch, llama.cpp"):
        load_for_drafts(str(tiny_base), backend="fast")


def test_without_its_package_llama_cpp_is_one_sentence(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)  # as if it were not installed
    (tmp_path / "some.gguf").touch()
    for base, backend in ((str(tiny_base), "llama.cpp"), (str(tmp_path / "some.gguf"), "auto")):
        with pytest.raises(UserError, match=r"llama-cpp-python: pip install 'panza\[llama\]'"):
            load_for_drafts(base, backend=backend, kept=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_without_kernels_torch_drafts(tiny_base: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native, "_kernels", None)
    model, why = load_for_drafts(str(tiny_base))
    assert type(model).__name__ == "TorchModel" and "without a C++ compiler" in why


@needs_kernels
def test_a_prompt_longer_than_the_context_is_refused(tiny_base: Path):
    model, _ = load_for_drafts(str(tiny_base), backend="native")
    long = [{"role": "user", "content": "word " * 3000}]
    with pytest.raises(UserError, match="too long .* reads 1024 tokens"):
        list(model.generate(long, Sampling(), lambda: False))


@needs_kernels
def test_native_drafting_loads_no_torch():
    code = (
        "import sys; from panza.models import load_for_drafts, Sampling\n"
        "model, _ = load_for_drafts(backend='native')\n"
        "text = ''.join(model.generate([{'role': 'user', 'content': 'Say yes.'}], Sampling(max_tokens=3), lambda: False))\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
