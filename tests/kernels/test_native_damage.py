"""Whatever the extension is handed, it refuses in a sentence or computes rightly; it never reads beyond, hangs or mixes.

Damaged files are in tests/compress/test_damage.py. `make sanitize` runs both under the sanitizers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compress import native
from tests.conftest import needs_kernels

pytestmark = needs_kernels
if native.available():
    from compress import _kernels
ISAS = native._kernels.isas() if native.available() else []
RUNS = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
REFUSED = (ValueError, TypeError, OverflowError, MemoryError)
Parts = dict[str, Any]


def packed(N: int, count: int, bits: int, chance: np.random.Generator) -> np.ndarray:
    return chance.integers(0, 256, (N, (count * bits + 7) // 8), np.uint8)


def table(*shape: int, chance: np.random.Generator) -> np.ndarray:
    return chance.normal(size=shape).astype(np.float32)


@st.composite
def weights(draw: Callable) -> Parts:
    """The parts of a weight of any kind and size, as `_kernels.Linear` takes them."""
    chance = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["grid", "lut", "additive", "trellis", "float16", "bfloat16"]))
    N, D = draw(st.integers(1, 80)), draw(st.integers(1, 150))
    values = None
    if kind == "grid":
        numbers = [draw(st.integers(1, 16) | st.sampled_from([2, 3, 4, 8]))]
        codes = packed(N, D, numbers[0], chance)
    elif kind == "lut":
        numbers = [draw(st.integers(1, 10) | st.sampled_from([2, 3, 4])), draw(st.sampled_from([1, N]))]
        codes, values = packed(N, D, numbers[0], chance), table(numbers[1] << numbers[0], chance=chance)
    elif kind == "additive":
        numbers = [draw(st.integers(1, 4)), draw(st.integers(1, 10)), draw(st.integers(1, 9) | st.just(8))]
        D += -D % numbers[2]
        codes = packed(N, D // numbers[2] * numbers[0], numbers[1], chance)
        values = table((numbers[0] << numbers[1]) * numbers[2], chance=chance)
    elif kind == "trellis":
        window = draw(st.integers(1, 10) | st.sampled_from([6, 7, 8]))
        numbers = [draw(st.integers(1, window) | st.integers(1, min(4, window))), window]
        N, D = 16 * (N // 16 + 1), 16 * (D // 16 + 1)
        codes, values = packed(N // 16, 16 * D * numbers[0] + window - numbers[0], 1, chance), table(1 << window, chance=chance)  # fmt: skip
    else:
        numbers, whole = [], table(N, D, chance=chance)
        bits = whole.astype(np.float16).view(np.uint16) if kind == "float16" else (whole.view(np.uint32) >> 16)
        codes = bits.astype(np.uint16).view(np.uint8)
    divisors = st.sampled_from([g for g in range(1, D + 1) if D % g == 0])
    scale = table(N, draw(divisors), chance=chance) if numbers and draw(st.booleans()) else None
    zero = table(N, draw(divisors), chance=chance) if kind == "grid" and draw(st.booleans()) else None
    made = {"outputs": N, "inputs": D, "kind": kind, "N": N, "D": D, "numbers": numbers, "codes": codes}
    return made | {"scale": scale, "zero": zero, "values": values}


@pytest.mark.parametrize("isa", ISAS)
@RUNS
@given(parts=weights(), tokens=st.integers(1, 20), threads=st.integers(1, 3), exact=st.booleans())
def test_weights_of_any_kind_and_size_multiply(isa: str, parts: Parts, tokens: int, threads: int, exact: bool):
    made, plain = (_kernels.Linear(**parts, isa=name, exact=exact) for name in (isa, "plain"))
    decoded = plain.decode()
    assert np.allclose(made.decode(), decoded, rtol=1e-6, atol=1e-6)
    x = np.random.default_rng(tokens).normal(size=(tokens, parts["D"])).astype(np.float32)
    y, expected = made.multiply(x, _kernels.Pool(threads)), x.astype(np.float64) @ decoded.T
    size = np.linalg.norm(x, axis=1)[:, None] * np.abs(decoded).max()
    assert (np.abs(y - expected) <= (0.01 if exact else 0.1) * size).all()


ODD = [-(2**31), -1, 0, 1, 2, 3, 7, 15, 16, 17, 64, 2**16, 2**26, 2**30, 2**31 - 1, 2**31, 2**40, None, 1.5, "x"]


def odd_arrays(array: np.ndarray) -> list[Any]:
    """What stands where `array` should: other sizes, types and orders, no numbers, nothing."""
    made = [None, array[:-1], array[..., :-1], np.repeat(array, 2, 0), np.zeros((0, 2**33), array.dtype), array.ravel()]
    made += [
        array.astype(np.float64),
        array.astype(np.int64),
        np.asfortranarray(array),
        array[..., ::-1],
        "x",
        array[0],
    ]
    return made + [np.full_like(array, bad) for bad in (np.nan, np.inf) if array.dtype.kind == "f"]


@pytest.mark.parametrize("isa", ISAS)
@RUNS
@given(parts=weights(), data=st.data())
def test_one_odd_part_is_refused_or_multiplies(isa: str, parts: Parts, data: st.DataObject):
    name = data.draw(st.sampled_from([n for n, part in parts.items() if part is not None and n != "kind"]))
    if name == "numbers" and parts[name]:
        changed = list(parts[name])
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.sampled_from(ODD))
        value: Any = changed
    elif isinstance(parts[name], np.ndarray):
        value = data.draw(st.sampled_from(odd_arrays(parts[name])))
    else:
        value = data.draw(st.sampled_from(ODD))
    try:
        made = _kernels.Linear(**parts | {name: value}, isa=isa)
    except REFUSED:
        return
    N, D = made.shape
    for tokens in (0, 1, 5):
        assert made.multiply(np.ones((tokens, D), np.float32), _kernels.Pool(2)).shape == (tokens, N)


def test_sizes_whose_product_wraps_are_refused():
    halves = np.zeros((2, 2), np.uint8)
    for sizes in ((2**31 - 1, 2**31 - 1), (2**30, 4), (2**16, 2**16)):
        for kind, numbers in (("grid", [8]), ("lut", [4, 1]), ("additive", [2**22, 16, 2**26]), ("trellis", [2, 7]), ("float16", [])):  # fmt: skip
            with pytest.raises(ValueError):
                _kernels.Linear(1, 1, kind, *sizes, numbers, halves, None, None, np.zeros(0, np.float32))
    with pytest.raises(ValueError, match="too many"):  # 2^22 books of 2^16 words of 2^26 numbers: 2^64
        _kernels.Linear(1, 2**26, "additive", 1, 2**26, [2**22, 16, 2**26], np.zeros((1, 2**23), np.uint8), values=np.zeros(0, np.float32))  # fmt: skip


def a_grid(N: int = 5, D: int = 12) -> Any:
    return _kernels.Linear(N, D, "grid", N, D, [8], np.arange(N * D, dtype=np.uint8).reshape(N, D))


def test_additions_that_do_not_fit_are_refused():
    floats, pool = np.ones((3, 12), np.float32), _kernels.Pool(1)
    for A, B in ((floats, floats), (floats[:, :4], np.ones((5, 3), np.float32)), (floats, np.ones((3, 5), np.float32)), (floats[:0], np.ones((5, 0), np.float32))):  # fmt: skip
        with pytest.raises(ValueError, match=r"A is|B is|low-rank"):
            a_grid().add_low_rank(A, B)
    for block, signs, order in ((5, None, None), (0, None, None), (-4, None, None), (4, np.ones(3, np.float32), None), (4, None, np.zeros(12, np.int32))):  # fmt: skip
        with pytest.raises(ValueError, match="block divides|permutation"):
            a_grid().set_transform(block, signs, 1, None, order)
    with pytest.raises(TypeError):  # numbers that would have to be cut
        a_grid().set_transform(1, None, 1, None, np.arange(12) + 2**32)
    with pytest.raises(ValueError, match="each output"):
        a_grid().set_bias(np.ones(4, np.float32))
    with pytest.raises(ValueError, match="x has 11 inputs, the weight 12"):
        a_grid().multiply(np.ones((1, 11), np.float32), pool)
    for x in (np.ones(12, np.float32), None, "x"):
        with pytest.raises(TypeError):
            a_grid().multiply(x, pool)


def test_inputs_may_lie_anyhow_but_not_between_numbers():
    made, pool = a_grid(), _kernels.Pool(1)
    x = np.random.default_rng(0).normal(size=(3, 12))
    expected = made.multiply(x.astype(np.float32), pool)
    for same in (x, np.asfortranarray(x), np.repeat(x, 2, 1)[:, ::2]):
        assert np.array_equal(made.multiply(same, pool), expected)
    shifted = np.frombuffer(b"?" + x.astype(np.float32).tobytes(), np.uint8)[1:].view(np.float32).reshape(3, 12)
    with pytest.raises(ValueError, match="whole number"):
        made.multiply(shifted, pool)


@pytest.mark.parametrize("threads", [0, -1, 1025, 2**31 - 1])
def test_pools_of_no_or_absurdly_many_threads_are_refused(threads: int):
    with pytest.raises(ValueError, match=f"1 to 1024 threads, not {threads}"):
        _kernels.Pool(threads)


def test_searches_whose_parts_do_not_fit_are_refused():
    pool, lut = _kernels.Pool(2), np.linspace(-1, 1, 16, dtype=np.float32)
    good = {"target": np.zeros((9, 5), np.float32), "weight": np.ones((9, 5), np.float32), "start": np.zeros(5, np.int64), "lut": lut, "step": 2, "pool": pool}  # fmt: skip
    assert _kernels.viterbi(**good).shape == (9, 5)
    for change in ({"weight": np.ones((9, 4), np.float32)}, {"weight": np.ones((8, 5), np.float32)}, {"start": np.zeros(4, np.int64)},
                   {"lut": lut[:15]}, {"lut": lut[:2]}, {"lut": lut[:0]}, {"step": 0}, {"step": 9}, {"step": -1}, {"step": 40}):  # fmt: skip
        with pytest.raises(ValueError):
            _kernels.viterbi(**good | change)


# A model of one layer, straight from its parts: sizes of the model's and of its weights may differ.

SIZES = {"vocab": 40, "hidden": 16, "layers": 1, "heads": 4, "kv_heads": 2, "head_dim": 4, "ffn": 24, "context": 700, "window": 0, "eps": 1e-6, "frequencies": [1.0, 0.1], "rotary_scale": 1.0}  # fmt: skip


def parts_of_a_model() -> Parts:
    chance = np.random.default_rng(0)

    def linear(N: int, D: int) -> Any:
        return native.dense(table(N, D, chance=chance) / D**0.5)

    layer = {
        "qkv": [linear(16, 16), linear(8, 16), linear(8, 16)], "out": linear(16, 16), "gate_up": [linear(24, 16), linear(24, 16)],
        "down": linear(16, 24), "attention_norm": [1.0] * 16, "ffn_norm": [1.0] * 16, "q_norm": [], "k_norm": [],
    }  # fmt: skip
    return {"shape": SIZES, "embedding": linear(40, 16), "head": linear(40, 16), "norm": [1.0] * 16, "layers": [layer]}


def a_model(**sizes: Any) -> Any:
    return _kernels.Model(**parts_of_a_model() | {"shape": SIZES | sizes})


def a_session(context: int = 700) -> Any:
    return _kernels.Session(a_model(context=context), _kernels.Pool(2))


@RUNS
@given(name=st.sampled_from([n for n in SIZES if n != "frequencies"]), value=st.sampled_from(ODD))
def test_a_model_of_odd_sizes_is_refused_or_reads(name: str, value: Any):
    try:
        session = _kernels.Session(a_model(**{name: value}), _kernels.Pool(1))
    except (*REFUSED, RuntimeError):
        return
    session.read([1, 2, 3] if (name, value) not in (("context", 1), ("context", 2)) else [1])
    assert 0 <= session.sample(_kernels.Sampling()) < 40


def test_heads_whose_sizes_wrap_are_refused():
    wrapped = {"head_dim": 2**30 + 4, "frequencies": [1.0, 0.1]}  # times 4 heads in 32 bits: 16
    with pytest.raises(ValueError, match="those of no model"):
        a_model(**wrapped)


def test_models_with_parts_that_lack_are_refused():
    whole = parts_of_a_model()
    for name in ("qkv", "out", "gate_up", "down", "attention_norm", "ffn_norm", "q_norm"):
        layer = {key: value for key, value in whole["layers"][0].items() if key != name}
        for layers in ([layer], [layer | {name: None}], [layer | {name: [None]}], [], [layer] * 2, [None]):
            with pytest.raises((*REFUSED, KeyError, RuntimeError)):
                _kernels.Model(**whole | {"layers": layers})
    with pytest.raises(REFUSED):
        _kernels.Model(**whole | {"embedding": None})
    with pytest.raises(REFUSED):
        _kernels.Session(None, _kernels.Pool(1))


def drafted(session: Any, prompt: list[int], count: int = 12) -> list[int]:
    """Greedy tokens after a prompt."""
    session.prompt(prompt)
    made = []
    for _ in range(count):
        made.append(session.sample(_kernels.Sampling()))
        session.read(made[-1:])
    return made


def ids(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 40, count).tolist()


@pytest.mark.parametrize("pieces", [0, 1, 2])
def test_a_stop_within_a_prompt_leaves_what_was_read(pieces: int):
    session, prompt = a_session(), ids(600)
    expected, asked = drafted(a_session(), prompt), []

    def stopped() -> bool:
        asked.append(None)
        return len(asked) > pieces

    session.prompt(prompt, stopped)
    assert session.tokens == prompt[: pieces * 256]
    with pytest.raises(RuntimeError, match="read a prompt first"):
        session.sample(_kernels.Sampling())
    assert drafted(session, prompt) == expected


@pytest.mark.parametrize("pieces", [0, 1, 2])
def test_an_error_of_the_caller_within_a_prompt_leaves_what_was_read(pieces: int):
    session, prompt, asked = a_session(), ids(600), []
    drafted(session, ids(640, 1), 3)  # a text that the prompt replaces

    def stopped() -> bool:
        asked.append(None)
        if len(asked) > pieces:
            raise KeyError("gone")
        return False

    with pytest.raises(KeyError, match="gone"):
        session.prompt(prompt, stopped)
    assert session.tokens == prompt[: pieces * 256], "not the text before, whose keys and values are gone"
    assert drafted(session, prompt) == drafted(a_session(), prompt)


def test_a_session_that_is_read_from_within_keeps_to_its_context():
    session = a_session(context=520)

    def stopped() -> bool:
        if len(session.tokens) < 500:
            session.read(ids(250))
        return False

    with pytest.raises(ValueError, match="520 is full"):
        session.prompt(ids(500), stopped)
    assert len(session.tokens) <= 520
    assert drafted(session, ids(100)) == drafted(a_session(), ids(100))


def test_a_full_context_is_an_error_and_changes_nothing():
    session, prompt = a_session(context=64), ids(60)
    expected = drafted(a_session(), prompt, 4)
    assert drafted(session, prompt, 4) == expected
    for more in ([1], ids(10), ids(100)):
        with pytest.raises(ValueError, match="fit the context of 64"):
            session.read(more)
        assert session.tokens == prompt + expected
    with pytest.raises(ValueError, match="65 tokens"):
        session.prompt(ids(65))
    with pytest.raises(ValueError, match="fit the context of 64"):
        session.all_logits([1])
    assert session.tokens == prompt + expected
    assert drafted(session, prompt, 4) == expected


def test_sessions_of_one_model_at_once_draft_what_each_would_alone():
    model, pool = a_model(), _kernels.Pool(2)
    sessions = [_kernels.Session(model, pool) for _ in range(4)]
    alone = [drafted(a_session(), ids(300, i), 40) for i in range(4)]
    got: dict[int, list[int]] = {}
    threads = [threading.Thread(target=lambda i=i: got.update({i: drafted(sessions[i], ids(300, i), 40)})) for i in range(4)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[i] for i in range(4)] == alone


def test_a_session_may_be_looked_at_while_it_reads():
    session, prompt, done = a_session(), ids(640), threading.Event()
    seen: list[int] = []

    def look() -> None:
        while not done.is_set():
            seen.append(len(session.tokens) + session.logits.size)

    watcher = threading.Thread(target=look)
    watcher.start()
    expected = drafted(a_session(), prompt)
    for _ in range(5):
        session.truncate(0)
        assert drafted(session, prompt) == expected
    done.set()
    watcher.join()
    assert seen and all(0 <= n <= 700 for n in seen)


SAMPLINGS = st.fixed_dictionaries(
    {name: st.floats(width=32) for name in ("temperature", "top_p", "min_p", "repetition_penalty")}
    | {"top_k": st.integers(-(2**31), 2**31 - 1)}
)


@RUNS
@given(how=SAMPLINGS, bad=st.sampled_from([1.0, float("nan"), float("inf"), -float("inf"), 1e30]))
def test_any_way_to_sample_gives_a_token(how: Parts, bad: float):
    model = _kernels.Model(**parts_of_a_model() | {"norm": [bad] + [1.0] * 15})
    session = _kernels.Session(model, _kernels.Pool(1))
    session.read([1, 2, 3])
    for _ in range(3):
        assert 0 <= session.sample(_kernels.Sampling(**how)) < 40
