"""LoRA adapters train on a compressed model and load beside it, as on any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress.checkpoint import load_model
from compress.errors import CompressError
from compress.model import Options, compress_model


@pytest.fixture(scope="module")
def compressed(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compressed") / "out"
    compress_model(tiny_base, out, "rtn", 4, None, Options(sequences=4, length=16))
    return out


@pytest.mark.parametrize("target", ["all-linear", ["q_proj", "down_proj"]])
def test_an_adapter_trains_is_saved_and_comes_back(target: str | list[str], compressed: Path, tmp_path: Path):
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(0)
    ids = torch.randint(5, 90, (2, 12))
    net = get_peft_model(load_model(compressed), LoraConfig(r=4, target_modules=target, task_type="CAUSAL_LM"))
    frozen = {n: p.clone() for n, p in net.named_parameters() if "lora" not in n}
    optimizer = torch.optim.Adam((p for p in net.parameters() if p.requires_grad), lr=1e-2)
    losses = []
    for _ in range(3):
        loss = net(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    assert all(torch.equal(p, frozen[n]) for n, p in net.named_parameters() if n in frozen)
    net.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    again = PeftModel.from_pretrained(load_model(compressed), tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(again.eval()(ids).logits, net.eval()(ids).logits)
        assert not torch.equal(again(ids).logits, load_model(compressed)(ids).logits)


def test_merging_into_codes_is_refused(compressed: Path):
    from peft import LoraConfig, get_peft_model

    net = get_peft_model(load_model(compressed), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    with pytest.raises(CompressError, match="compressed"):
        net.merge_and_unload()
    with pytest.raises(CompressError, match="compressed"):
        net.merge_adapter(safe_merge=True)
