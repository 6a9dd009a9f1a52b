"""The GPU's benchmark: what it prints, what it refuses; what it does with a product that no graph holds, on a GPU."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from kernels import bench_gpu, rivals_gpu
from kernels.bench_gpu import Subject

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def row(kernel: str, tokens: int, us: float, ratio: float, N: int = 512, graph: bool = True) -> dict:
    return {"kernel": kernel, "bits": 2.25, "shape": [N, 256], "tokens": tokens, "us": us, "ratio": ratio, "floor_us": 3.96,
            "graph": graph}  # fmt: skip


def test_a_table_has_a_line_for_each_kernel_and_a_column_for_each_number_of_tokens():
    rows = [row("ours", 1, 12.46, 2.48), row("ours", 64, 137.2, 0.84), row("refused at 64", 1, 1234.6, 0.024)]
    assert bench_gpu.table(rows).splitlines() == [
        "| 512×256 | bits | 1 token | 64 | floor |",
        "|---|---|---|---|---|",
        "| ours | 2.25 | 12.5 (2.5) | 137 (0.8) | 4.0 |",
        "| refused at 64 | 2.25 | 1,235 (0.02) |  | 4.0 |",
    ]


def test_a_table_marks_what_no_graph_holds_and_keeps_shapes_apart():
    rows = [row("ours", 4, 2, 1), row("waits", 4, 30, 0.1, graph=False), row("ours", 4, 5, 1.5, N=1024)]
    made = bench_gpu.table(rows).splitlines()
    assert made[0] == "| 512×256 | bits | 4 tokens | floor |"
    assert made[3] == "| waits | 2.25 | 30.0 (0.1)* | 4.0 |"
    assert (
        made[4:6] == ["", "| 1024×256 | bits | 4 tokens | floor |"] and made[7] == "| ours | 2.25 | 5.0 (1.5) | 4.0 |"
    )
    assert made[-1].startswith("*: ") and "*" not in bench_gpu.table(rows[::2])


def test_kernels_are_chosen_by_parts_of_names():
    made = {"grid 2-bit": 1, "aqlm 2x8": 2, "additive 2x8": 3}
    assert [name for name, _ in bench_gpu.chosen(made, "2x8")] == ["aqlm 2x8", "additive 2x8"]
    assert [name for name, _ in bench_gpu.chosen(made, "grid,aqlm")] == ["grid 2-bit", "aqlm 2x8"]
    assert len(bench_gpu.chosen(made, "")) == 3


def test_packages_that_are_missing_have_a_line_and_no_rivals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in rivals_gpu.INSTALL:
        monkeypatch.delitem(sys.modules, name, raising=False)  # another test may have brought it
    assert rivals_gpu.rivals(512, 256) == {}
    assert [line.split(" is not installed: pip install ")[0] for line in rivals_gpu.missing()] == list(
        rivals_gpu.INSTALL
    )
    (tmp_path / "gemlite.py").write_text("raise RuntimeError('a list of rivals imports none of them')")
    sys.path_importer_cache.pop(str(tmp_path), None)
    assert {name.split()[0] for name in rivals_gpu.rivals(512, 256)} == {"gemlite"}
    assert [line.split()[0] for line in rivals_gpu.missing()] == ["aqlm", "spqr_quant"]


@pytest.mark.parametrize(
    ("off", "right", "refused"), [(0, 0, False), (0.01, 0, True), (0.01, 0.02, False), (0.03, 0.02, True)]
)
def test_a_product_that_is_wrong_is_refused(off: float, right: float, refused: bool):
    dense = torch.randn(64, 128)
    subject = Subject([lambda x: (x.float() @ dense.T * (1 + off)).half()], 64, dense, right)
    if refused:
        with pytest.raises(AssertionError, match="off by"):
            bench_gpu.checked(subject, 4)
    else:
        error, plain = bench_gpu.checked(subject, 4)
        assert abs(error - off) < 1e-3 and 0 < plain < 1e-3


@needs_gpu
def test_a_product_that_no_graph_holds_is_timed_in_a_loop():
    x, w = torch.randn(4, 512, device="cuda").half(), torch.randn(512, 512, device="cuda").half()
    call = partial(F.linear, x, w)

    def waiting() -> None:
        call()
        torch.cuda.synchronize()

    us, graph = bench_gpu.timed([waiting])
    assert us > 0 and not graph
    us, graph = bench_gpu.timed([call] * 3)
    assert us > 0 and graph, "the next one has its graph"
