"""Rows of compressed weights: the definition against the whole weight, the GPU's kernel against the definition."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from compress import cuda_rows, nvrtc
from compress.decode import Additive, Grid, Lut, Trellis
from compress.embeddings import EmbeddingConfig, quantized, scaled
from compress.errors import CompressError
from compress.linear import QuantizedEmbedding
from compress.tables import Real, TwoLevel, Whole
from compress.transform import Transform
from compress.weight import LowRank, QuantizedWeight, Sparse
from tests.compress.conftest import filled

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
V, D = 137, 201


def embedding(bits: int, exact: float = 0.0, factor: float = 1.0, group: int = 64) -> QuantizedWeight:
    """As `compress_embeddings_` writes it. exact: share of outliers. factor: Gemma's."""
    counts = torch.rand(V) if exact else None
    made = quantized(torch.randn(V, D), bits, EmbeddingConfig(bits, bits, group, exact), counts)
    return scaled(made, factor)


def outliers(share: float) -> Sparse:
    return Sparse.of(5 * torch.randn(V, D) * (torch.rand(V, D) < share))


def taken() -> dict[str, QuantizedWeight]:
    """What the kernel gathers: embeddings as they are written, and odd grids."""
    made = {f"embedding {bits}": embedding(bits) for bits in range(4, 9)}
    made |= {f"embedding {bits} with outliers": embedding(bits, 0.02) for bits in range(4, 9)}
    made |= {"gemma": embedding(5, 0.01, 48**0.5), "one scale a row": embedding(6, group=0)}
    made |= {f"groups of 13, {bits} bits": filled(QuantizedWeight((V, D), Grid(V, 208, bits, Whole(V, 16, bits)), Real(V, 16))) for bits in range(1, 9)}  # fmt: skip
    made |= {f"zeros of {bits} bits": filled(QuantizedWeight((V, D), Grid(V, 203, 4, Whole(V, 29, bits)), Real(V, 7), sparse=outliers(0.1))) for bits in (1, 7, 9, 16)}  # fmt: skip
    made["real zeros"] = filled(QuantizedWeight((V, D), Grid(V, D, 7, Real(V, 3)), Real(V, 67)))
    made["without scale"] = filled(QuantizedWeight((V, D), Grid(V, D, 5)))
    made["a few inputs"] = filled(QuantizedWeight((V, 5), Grid(V, 5, 3), Real(V, 1)))
    return made


def left() -> dict[str, QuantizedWeight]:
    """What is left to plain torch."""
    return {name: filled(weight) for name, weight in {
        "padded rows": QuantizedWeight((V, D), Grid(V + 7, D, 4), Real(V + 7, 3)),
        "gptq": QuantizedWeight((V, 250), Grid(V, 256, 4, Whole(V, 2, 4)), Real(V, 2), Transform(V, 256, permuted=True)),
        "spqr": QuantizedWeight((V, D), Grid(V, 208, 3, TwoLevel(V, 13, 3, 16)), TwoLevel(V, 13, 3, 16), sparse=outliers(0.05)),
        "spqr of all rows": QuantizedWeight((V, D), Grid(V, 208, 3, TwoLevel(V, 13, 3, 999)), TwoLevel(V, 13, 3, 999)),
        "lut of rows": QuantizedWeight((V, D), Lut(V, D, 3, rows=V), low_rank=LowRank(V, D, 3)),
        "lut": QuantizedWeight((V, D), Lut(V, D, 3, rows=1)),
        "rotated inputs": QuantizedWeight((V, 192), Grid(V, 192, 2), Real(V, 3), Transform.random(V, 192, 64, 1, 0)),
        "rotated outputs": QuantizedWeight((144, 192), Grid(144, 192, 2), Real(144, 3), Transform.random(144, 192, 1, 16, 0)),
        "additive": QuantizedWeight((V, D), Additive(V, 208, 2, 8, 8), Real(V, 13)),
        "additive int8": QuantizedWeight((V, D), Additive(V, 208, 3, 5, 4, int8=True), Real(V, 1)),
        "trellis": QuantizedWeight((V, D), Trellis(144, 208, 2, 8), Real(144, 1), Transform.random(144, 208, 16, 16, 0)),
        "trellis alone": QuantizedWeight((V, D), Trellis(144, 208, 3, 8), None),
    }.items()}  # fmt: skip


NAMES = {"taken": list(taken()), "left": list(left())}
SHAPES = [(), (0,), (1,), (3, 0), (7,), (2, 3, 11)]


@pytest.mark.parametrize("name", [*NAMES["taken"], *NAMES["left"]])
def test_rows_are_those_of_the_whole_weight(name: str, chance: torch.Generator):
    weight = (taken() | left())[name]
    rotated = weight.transform.in_block * weight.transform.out_block > 1 or weight.low_rank is not None
    whole = weight.dense()
    for shape in SHAPES:
        ids = torch.randint(0, weight.shape[0], shape, generator=chance)
        made = weight.rows(ids)
        assert made.shape == (*shape, weight.shape[1]) and made.dtype == torch.float32
        assert torch.allclose(made, whole[ids], atol=1e-4) if rotated else torch.equal(made, whole[ids])
        assert torch.equal(weight.rows(ids.int()), made)


@pytest.mark.parametrize("name", [*NAMES["left"], "embedding 4 with outliers", "real zeros"])
def test_gradients_of_rows_are_those_of_the_whole_weight(name: str, chance: torch.Generator):
    weight = (taken() | left())[name]
    twin = copy.deepcopy(weight)
    ids = torch.randint(0, weight.shape[0], (50,), generator=chance)  # some of them twice
    slope = torch.randn(50, weight.shape[1], generator=chance)
    (weight.rows(ids) * slope).sum().backward()
    (twin.dense()[ids] * slope).sum().backward()
    exact = dict(twin.named_parameters())
    for key, p in weight.named_parameters():
        assert (p.grad is None) == (exact[key].grad is None)
        if p.grad is not None:  # of fp16 parameters: fp16
            assert (p.grad - exact[key].grad).float().norm() <= 2e-3 * exact[key].grad.float().norm(), key


def test_a_row_costs_that_row():
    weight = filled(QuantizedWeight((1, D), Grid(1, D, 8), Real(1, 3)))
    one, N = weight.dense(), 10**9  # as many rows as no memory holds, all the same
    weight.shape, weight.decode.N = (N, D), N
    weight.decode.codes = weight.decode.codes.expand(N, -1)
    weight.scale.values = nn.Parameter(weight.scale.values.detach().expand(N, -1), requires_grad=False)
    assert torch.equal(QuantizedEmbedding(weight)(torch.tensor([N - 1, 0])), one.expand(2, -1))


def test_ids_outside_are_refused():
    for weight in (embedding(8), left()["trellis"]):
        for wrong in (V, -1, 2**40):
            with pytest.raises(IndexError, match=f"0 to {V - 1}"):
                QuantizedEmbedding(weight)(torch.tensor([[3, wrong]]))


@pytest.mark.parametrize("name", NAMES["taken"])
def test_embeddings_as_they_are_written_fit_the_kernel(name: str):
    weight = taken()[name]
    assert cuda_rows.fits(weight)
    assert not cuda_rows.takes(weight, torch.tensor([1]), torch.float32), "there is no GPU in it"
    assert name == "without scale" or not cuda_rows.fits(copy.deepcopy(weight).float()), "it reads fp16"


@pytest.mark.parametrize("name", NAMES["left"])
def test_other_kinds_are_left_to_torch(name: str):
    assert not cuda_rows.fits(left()[name])


def test_the_kernel_compiles_for_old_and_new_cards():
    try:
        compiler = nvrtc.find_compiler()
    except OSError:
        pytest.skip("there is no NVRTC")
    source = (nvrtc.sources() / "rows.cu").read_bytes()
    for capability in ((7, 5), (8, 0), (9, 0)):
        assert nvrtc.compiled(source, capability, compiler)[1:4] == b"ELF"


# --- on a GPU ---


def on_gpu(weight: QuantizedWeight, dtype: torch.dtype = torch.float16) -> QuantizedEmbedding:
    made = QuantizedEmbedding(weight).cuda().requires_grad_(False)
    made.dtype = dtype
    return made


def alike(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


@needs_gpu
@pytest.mark.parametrize("name", NAMES["taken"])
def test_the_kernel_gives_the_bits_of_the_definition(name: str):
    weight = taken()[name]
    for dtype in cuda_rows.FLOATS:
        table = on_gpu(weight, dtype)
        exact = table.quantized.dense().to(dtype)
        for shape in SHAPES:
            ids = torch.randint(0, V, shape, device="cuda")
            assert cuda_rows.takes(table.quantized, ids, dtype)
            assert alike(table(ids), exact[ids])
            assert alike(table(ids.int()), exact[ids])
        every = torch.arange(2 * V, device="cuda")[::2] // 2  # not contiguous
        assert alike(table(every), exact)


@needs_gpu
def test_rows_that_do_not_exist_are_nan_and_the_rest_is_right():
    table = on_gpu(embedding(6, 0.02))
    ids = torch.tensor([0, -1, V - 1, V, 2**62, -(2**63), 5], device="cuda")
    there = (ids >= 0) & (ids < V)
    made = table(ids)
    assert made[~there].isnan().all() and torch.equal(made[there], table.quantized.dense().half()[ids[there]])


@needs_gpu
def test_a_table_that_learns_or_changes_is_read_as_it_is():
    table, ids = on_gpu(embedding(8)), torch.tensor([[3, 0], [3, 1]], device="cuda")
    table(ids)
    table.quantized.decode.codes.random_(0, 256)
    table.quantized.scale.values.data = torch.rand_like(table.quantized.scale.values)
    assert torch.equal(table(ids), table.quantized.dense().half()[ids])
    table.requires_grad_(True)
    table(ids).sum().backward()
    assert table.quantized.scale.values.grad.abs().sum() > 0


@needs_gpu
@pytest.mark.parametrize("name", ["embedding 4 with outliers", "embedding 8"])
def test_graphs_and_compiled_models_gather_by_the_kernel(name: str):
    table = on_gpu(taken()[name], torch.bfloat16)
    compiled = torch.compile(table, fullgraph=True)
    ids = torch.randint(0, V, (2, 5), device="cuda")
    exact = table.quantized.dense().bfloat16()
    assert torch.equal(compiled(ids), exact[ids]) and torch.equal(table(ids), exact[ids])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        later = table(ids)
    ids.random_(0, V)
    graph.replay()
    assert torch.equal(later, exact[ids])


@needs_gpu
def test_the_operator_keeps_torchs_contract_and_refuses_what_does_not_fit():
    ids, half = torch.tensor([3, 4], device="cuda"), torch.float16
    for name in ("without scale", "embedding 4 with outliers"):
        tables, how = cuda_rows.arguments(on_gpu(taken()[name]).quantized)
        tests = ("test_schema", "test_faketensor")
        torch.library.opcheck(cuda_rows.rows, (ids, tables, how, half), test_utils=tests)
    for i in range(len(tables)):
        with pytest.raises(CompressError, match="table"):
            cuda_rows.rows(ids, [t[:-1] if i == j else t for j, t in enumerate(tables)], how, half)
    with pytest.raises(CompressError, match="cpu"):
        cuda_rows.rows(ids.cpu(), tables, how, half)
