"""Any damage to a checkpoint is one CompressError or a model that predicts; nothing is allocated for sizes it makes up."""

from __future__ import annotations

import copy
import json
import re
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from compress import native, runtime
from compress.blocks import plain_linears, replace_
from compress.checkpoint import FILE, SPEC, load_model, save_model
from compress.embeddings import compress_embeddings_
from compress.eora import repair
from compress.errors import CompressError
from compress.linear import QuantizedLinear
from compress.methods import method
from tests.conftest import needs_kernels

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 64, "num_attention_heads": 2}
KINDS = {
    "q_proj": ("aqlm", {"shape": "2x3g4", "int8": True}),
    "k_proj": ("gptq", {"group": 16}),
    "v_proj": ("spqr", {"act_order": True}),
    "o_proj": ("lnq", {"bits": 2}),
    "gate_proj": ("rtn", {"group": 16, "symmetric": True}),
    "up_proj": ("rtn", {"group": 16, "bits": 3}),
    "down_proj": ("trellis", {}),
}
RUNS = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
SHAPES = st.lists(st.integers(0, 40), max_size=3).map(tuple)
ROOM = 300_000  # KiB: far more than this model takes, far less than a made-up size would


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with every kind of codes, tables and additions."""
    torch.manual_seed(0)
    net = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)).eval()
    for name, layer in plain_linears(net.model).items():
        kind, changes = KINDS[name.rpartition(".")[2]]
        w, eye = layer.weight.data, torch.eye(layer.in_features)[None]
        (made,) = method(kind).quantize([w], [eye], method(kind).Config(**changes))
        made = repair(made, w, eye, 2) if kind == "lnq" else made
        replace_(net.model, name, QuantizedLinear(made))
    compress_embeddings_(net)
    folder = tmp_path_factory.mktemp("damage")
    save_model(net, folder, folder / "whole")
    return folder / "whole"


@pytest.fixture(scope="module")
def torn(whole: Path) -> Path:
    """A copy to damage: every example writes both files anew."""
    return Path(shutil.copytree(whole, whole.with_name("torn")))


def refused_or_loaded(folder: Path) -> bool:
    """Whether it loads; then it predicts too."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if native.available():
        natively(folder)
    try:
        model = load_model(folder)
    except CompressError as error:
        assert len(str(error)) < 1000
        return False
    finally:
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < ROOM
    with torch.no_grad():
        assert model(torch.arange(5)[None]).logits.shape == (1, 5, 64)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < ROOM
    return True


def natively(folder: Path) -> bool:
    """Whether the native decoder loads it; then it predicts."""
    try:
        made = runtime.load(folder)
    except CompressError as error:
        assert len(str(error)) < 1000
        return False
    assert made.logits([1, 2, 3]).shape == (3, 64)
    return True


def put(folder: Path, file: bytes, spec: bytes) -> Path:
    (folder / FILE).write_bytes(file)
    (folder / SPEC).write_bytes(spec)
    return folder


def test_the_whole_one_loads(whole: Path):
    assert refused_or_loaded(whole)
    assert natively(whole) or not native.available()


def test_a_config_with_absurdly_many_layers_is_refused_at_once(whole: Path, tmp_path: Path):
    folder = Path(shutil.copytree(whole, tmp_path / "many"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**9}))
    with pytest.raises(CompressError, match="describes no model"):
        load_model(folder)


@RUNS
@given(data=st.data())
def test_flipped_bytes_of_the_tensors(whole: Path, torn: Path, data: st.DataObject):
    file, spec = bytearray((whole / FILE).read_bytes()), (whole / SPEC).read_bytes()
    header = 8 + int.from_bytes(file[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        end = data.draw(st.sampled_from([8, header, header, len(file)]))
        file[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    refused_or_loaded(put(torn, bytes(file), spec))


@RUNS
@given(kept=st.floats(0, 1), more=st.binary(max_size=9))
def test_cut_and_lengthened_tensors(whole: Path, torn: Path, kept: float, more: bytes):
    file, spec = (whole / FILE).read_bytes(), (whole / SPEC).read_bytes()
    changed = file[: int(kept * len(file))] + more
    loaded = refused_or_loaded(put(torn, changed, spec))
    assert loaded if changed == file else not loaded or len(changed) == len(file)


@RUNS
@given(data=st.data())
def test_flipped_bytes_of_the_description(whole: Path, torn: Path, data: st.DataObject):
    spec = bytearray((whole / SPEC).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        spec[data.draw(st.integers(0, len(spec) - 1))] = data.draw(st.integers(0, 255))
    refused_or_loaded(put(torn, (whole / FILE).read_bytes(), bytes(spec)))


ODD = [None, True, False, -1, 0, 1, 2, 3, 5, 7, 16, 17, 48, 64, 10**6, 2**31, 2**62, 10**30, 1.5, 32.0, float("nan")]
ODD += ["", "grid", "lut", "trellis", "real", "two_level", "whole", "magic", "model", [], {}, [10**12, 2], [[[]]]]


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The paths to everything in a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [p for key, part in inside for p in places(part, (*path, key))]


@settings(RUNS, max_examples=250)
@given(data=st.data())
def test_edits_of_the_description(whole: Path, torn: Path, data: st.DataObject):
    spec = json.loads((whole / SPEC).read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        *path, last = data.draw(st.sampled_from(places(spec)))
        owner = spec
        for key in path:
            owner = owner[key]
        what = data.draw(st.sampled_from(["change", "change", "change", "drop", "add"]))
        if what == "drop":
            del owner[last]
        elif what == "add" and isinstance(owner, dict):
            owner[data.draw(st.sampled_from(["groups", "sparse", "zero", "x", ""]))] = copy.deepcopy(owner[last])
        else:
            owner[last] = data.draw(st.sampled_from(ODD))
    refused_or_loaded(put(torn, (whole / FILE).read_bytes(), json.dumps(spec).encode()))


POINTING = {"sparse.columns": "beyond", "sparse.starts": "do not count", "transform.order": "no permutation"}


@pytest.mark.parametrize("name", POINTING)
def test_numbers_that_point_outside_are_named(name: str, whole: Path, torn: Path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(whole / FILE)
    key = f"model.layers.0.self_attn.v_proj.quantized.{name}"
    tensors[key][-1] = 60
    save_file(tensors, torn / FILE, metadata={"format": "pt"})
    (torn / SPEC).write_bytes((whole / SPEC).read_bytes())
    with pytest.raises(CompressError, match=f"v_proj.*{POINTING[name]}"):
        load_model(torn)
    if native.available():
        with pytest.raises(CompressError, match=POINTING[name]):
            runtime.load(torn)


@needs_kernels
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_tables_and_norms_that_are_no_numbers_are_named(bad: float, whole: Path, torn: Path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(whole / FILE)
    (torn / SPEC).write_bytes((whole / SPEC).read_bytes())
    names = [n for n, t in tensors.items() if t.is_floating_point() and (".quantized." in n or t.dim() == 1)]
    assert len(names) > 15
    for name in names:
        for dtype in (tensors[name].dtype, torch.bfloat16):
            damaged = tensors[name].to(dtype, copy=True)
            damaged.view(-1)[-1] = bad
            save_file(tensors | {name: damaged}, torn / FILE, metadata={"format": "pt"})
            with pytest.raises(CompressError, match=f"'{re.escape(name)}' holds numbers that are not finite"):
                runtime.load(torn)


@needs_kernels
@settings(RUNS, max_examples=150)
@given(data=st.data())
def test_edits_of_the_config(whole: Path, torn: Path, data: st.DataObject):
    put(torn, (whole / FILE).read_bytes(), (whole / SPEC).read_bytes())
    config = json.loads((whole / "config.json").read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        config[data.draw(st.sampled_from(sorted(config)))] = data.draw(st.sampled_from(ODD + [4, 8, 2**30 + 4]))
    (torn / "config.json").write_text(json.dumps(config))
    try:
        natively(torn)
    finally:
        shutil.copy(whole / "config.json", torn)


@needs_kernels
@RUNS
@given(data=st.data())
def test_damaged_adapters(whole: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    from safetensors.torch import save

    sizes = {"A": (3, 32), "B": (32, 3)} | data.draw(st.just({}) | st.dictionaries(st.sampled_from("AB"), SHAPES))
    layer = data.draw(st.sampled_from(["self_attn.q_proj", "self_attn.q_proj", "self_attn.x_proj", ""]))
    key = f"base_model.model.model.layers.0.{layer}.lora_"
    file = bytearray(save({f"{key}{part}.weight": torch.ones(size) for part, size in sizes.items()}))
    if data.draw(st.booleans()):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    scale = data.draw(st.sampled_from([8, 8, 0, None, "x", float("nan"), 10**400]))
    folder = tmp_path_factory.mktemp("adapter")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": scale}))
    (folder / "adapter_model.safetensors").write_bytes(file)
    try:
        made = runtime.load(whole, folder)
    except CompressError as error:
        assert len(str(error)) < 1000
    else:
        assert made.logits([1, 2, 3]).shape == (3, 64)


@pytest.mark.parametrize(("rank", "number", "alpha"), [(3, float("nan"), 8), (0, 1.0, 8), (3, 1.0, float("nan"))])
def test_an_adapter_without_usable_numbers_is_refused(tmp_path: Path, rank: int, number: float, alpha: float):
    from safetensors.torch import save_file

    from compress.lora import read_lora

    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    factors = {"A": torch.ones(rank, 32), "B": torch.full((32, rank), number)}
    save_file(
        {f"{key}{part}.weight": tensor for part, tensor in factors.items()}, tmp_path / "adapter_model.safetensors"
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": alpha}))
    with pytest.raises(CompressError, match="q_proj"):
        read_lora(tmp_path)
