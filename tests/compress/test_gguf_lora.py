"""LoRA adapters as GGUF: llama.cpp with model and adapter predicts what transformers with both predicts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from compress.checkpoint import load_model
from compress.export import main
from tests.compress.test_gguf import byte_level, exported, model, predicted, saved

pytest.importorskip("gguf", reason="gguf is not installed: nothing is written")
IDS = [7, 300, 45, 499, 0, 12, 12, 260, 31, 77, 401, 5]


def learnt(folder: Path, net: nn.Module, **settings: object) -> Path:
    """An adapter whose factors are not zero, on every layer; net is left with it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    settings = {"r": 3, "lora_alpha": 8, "target_modules": "all-linear"} | settings
    learner = get_peft_model(net, LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, parameter in learner.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn_like(parameter)
    learner.save_pretrained(folder, save_embedding_layers=False)
    return folder


def written(net: Path, adapter: Path, *more: str) -> Path:
    """The file that the command writes of an adapter."""
    out = adapter.with_suffix(".lora.gguf")
    out.unlink(missing_ok=True)
    assert main([str(net), "--format", "gguf", "--adapter", str(adapter), "--out", str(out), *more]) == 0
    return out


def llama_logits(file: Path, lora: Path | None) -> torch.Tensor:
    """(T, vocabulary) of IDS."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: llama.cpp is not tried")
    path = str(lora) if lora else None
    net = llama_cpp.Llama(str(file), lora_path=path, n_ctx=64, n_threads=1, logits_all=True, verbose=False)
    net.eval(IDS)
    return torch.tensor(net.scores[: len(IDS)])


@pytest.mark.parametrize("case", ["llama", "mistral", "qwen2", "qwen3, yarn", "phi3", "gemma2"])
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}])
def test_llama_cpp_adds_what_transformers_adds(case: str, settings: dict, tmp_path: Path):
    net = model(case)
    folder = saved(tmp_path / "net", net, byte_level("qwen2"))
    adapter = learnt(tmp_path / "adapter", net, **settings)
    file, lora = exported(folder), written(folder, adapter)
    wanted, without = predicted(net, IDS), predicted(load_model(folder), IDS)
    assert (wanted - without).norm() > 0.1 * wanted.norm(), "the adapter says something"
    found = llama_logits(file, lora)[:, :520]
    assert (found - wanted).norm() < 0.01 * wanted.norm()
    assert (llama_logits(file, None)[:, :520] - without).norm() < 0.01 * without.norm()


def test_a_model_of_few_bits_takes_the_same_adapter(tmp_path: Path):
    net = model("llama", hidden_size=256, intermediate_size=512, num_hidden_layers=2)
    folder = saved(tmp_path / "net", net, byte_level("qwen2"))
    lora = written(folder, learnt(tmp_path / "adapter", net), "--type", "F16")
    wanted = predicted(net, IDS)
    found, without = (llama_logits(exported(folder, "Q8_0"), given)[:, :520] for given in (lora, None))
    assert (found - wanted).norm() < 0.1 * (without - wanted).norm()


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("net") / "net", model("llama, tied"), byte_level("qwen2"))


def test_the_file_says_what_it_is(net: Path, tmp_path: Path, capsys):
    from gguf import GGUFReader

    adapter = learnt(tmp_path / "adapter", load_model(net), target_modules=["q_proj"])
    read = GGUFReader(written(net, adapter, "--json"))
    said = json.loads(capsys.readouterr().out)
    assert (said["type"], said["adapted"], said["format"]) == ("F32", 3, "gguf") and said["bytes"] > 0
    fields = {name: field.contents() for name, field in read.fields.items()}
    assert fields["general.type"] == "adapter" and fields["general.architecture"] == "llama"
    assert fields["adapter.type"] == "lora" and fields["adapter.lora.alpha"] == 8
    shapes = {t.name: t.shape.tolist() for t in read.tensors}
    assert shapes["blk.2.attn_q.weight.lora_a"] == [64, 3] and shapes["blk.2.attn_q.weight.lora_b"] == [3, 64]


def edited(adapter: Path, **changes: object) -> Path:
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    return adapter


def test_what_a_file_cannot_say_is_refused_and_leaves_nothing(net: Path, tmp_path: Path, capsys):
    def refused(adapter: Path, said: str, *more: str) -> None:
        out = tmp_path / "x.gguf"
        assert main([str(net), "--format", "gguf", "--adapter", str(adapter), "--out", str(out), *more]) == 1
        assert said in capsys.readouterr().err and not list(tmp_path.glob("x*"))

    refused(learnt(tmp_path / "dora", load_model(net), use_dora=True), "is more than plain LoRA")
    refused(learnt(tmp_path / "head", load_model(net), target_modules=["lm_head"]), "has no place for what the adapter")
    refused(learnt(tmp_path / "wide", model("llama", num_attention_heads=8)), "is of another model")
    plain = learnt(tmp_path / "plain", load_model(net))
    refused(plain, "adapters are written as F32, F16, BF16, not as Q4_0", "--type", "Q4_0")
    refused(edited(plain, lora_alpha="much"), "adapter_config.json' is damaged")
    refused(edited(plain, lora_alpha=8, peft_type="LOHA"), "is more than plain LoRA")
    refused(tmp_path / "none", "is damaged or missing")


def test_an_adapter_goes_with_gguf_alone_and_without_a_text(net: Path, tmp_path: Path):
    for more in (["--format", "plain"], ["--format", "gguf", "--calibration", "x.txt"]):
        with pytest.raises(SystemExit) as left:
            main([str(net), "--adapter", str(tmp_path), "--out", str(tmp_path / "out"), *more])
        assert left.value.code == 2
