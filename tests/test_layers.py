"""Imports go one way: compress <- panza <- app; the nouns import the standard library alone; import does no work."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ME, needs_kernels

ROOT = Path(__file__).resolve().parent.parent
BELOW = {
    "panza": {"pretrain", "app", "tests"},
    "compress": {"panza", "pretrain", "app", "tests"},
    "pretrain": {"app", "tests"},
}

# seconds to import
HEAVY = {"torch", "transformers", "sentence_transformers", "peft", "faiss", "gradio", "llama_cpp", "gguf"}


def imported(file: Path) -> set[str]:
    """Top-level names that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", [p for p in BELOW if (ROOT / p).is_dir()])
def test_a_package_imports_nothing_above_it(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files or package == "compress"
    assert {str(f.relative_to(ROOT)): bad for f in files if (bad := imported(f) & BELOW[package])} == {}


@pytest.mark.parametrize("module", ["types", "prompt", "facts", "letter", "extract"])
def test_the_plain_rooms_need_the_standard_library_alone(module: str) -> None:
    assert imported(ROOT / "panza" / f"{module}.py") <= sys.stdlib_module_names | {"panza"}


def test_importing_panza_loads_no_torch_and_prints_nothing() -> None:
    code = "import sys, panza.cli; sys.exit('torch' in sys.modules or 'gradio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def loads_none(heavy: set[str], verbs: list[list[str]], home: Path) -> subprocess.CompletedProcess[str]:
    """Runs the verbs in one fresh process and asks after each what it has imported."""
    code = f"""
import sys
from panza.cli import main
for words in {verbs!r}:
    sys.argv = ["panza", *words]
    try:
        main()
    except SystemExit:
        pass
    loaded = {heavy!r} & set(sys.modules)
    assert not loaded, (words, loaded)
"""
    env = {**os.environ, "PANZA_HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def test_verbs_that_need_no_model_load_no_heavy_library(mailbox: Path, tmp_path: Path) -> None:
    verbs = [
        ["--help"],
        ["train", "--help"],
        ["import", str(mailbox), "--me", ME],
        ["playback", "--tries", "0"],
        ["status"],
        ["inbox", "--limit", "3"],
        ["inbox", "budget"],
        ["draft", "  "],  # a mistake is told before a model is loaded
        ["draft", "yes", "--reply-to", "nobody@nowhere"],
        ["eval"],  # there is no adapter yet
    ]
    done = loads_none(HEAVY, verbs, tmp_path / "home")
    assert "80 new mails" in done.stdout and "The instruction is empty" in done.stderr, (
        "the verbs have to do their work"
    )


@needs_kernels
def test_a_native_draft_with_retrieval_loads_no_heavy_library(mailbox: Path, tmp_path: Path) -> None:
    from panza.assistant import Assistant
    from panza.home import open_home

    panza = Assistant(open_home(tmp_path / "home"))
    panza.import_mail([mailbox], [ME])
    panza.index()
    words = ["draft", "the budget works on Monday at 10:00", "--to", "Anna Lee", "--backend", "native"]
    done = loads_none(HEAVY - {"faiss"}, [words], tmp_path / "home")
    assert done.stdout.strip() and "Source:" in done.stderr and "torch" not in done.stderr


def test_no_pickle_and_no_remote_code() -> None:
    for file in [f for p in ("panza", "compress", "pretrain") for f in (ROOT / p).rglob("*.py")]:
        text = file.read_text(encoding="utf-8")
        assert "trust_remote_code" not in text.replace("trust_remote_code=False", ""), file
        assert not imported(file) & {"pickle", "shelve", "dill", "joblib"}, file
        if "torch.load(" in text:
            assert text.count("torch.load(") == text.count("weights_only=True"), file
