"""The kernels for ARM in an emulator: the program kernels/check.cpp holds every kind of weight against the definition.

What this computer runs itself is compared in the other files; `ctest` runs the same program for it (kernels/README.md).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "kernels"
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built for aarch64 and linked statically; with few optimisations, which halves the time."""
    missing = [name for name in ("cmake", COMPILER) if not shutil.which(name)] + ["qemu-aarch64"] * (not EMULATOR)
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("check")
    options = {"PANZA_CHECK": "ON", "CMAKE_BUILD_TYPE": "Debug", "CMAKE_CXX_FLAGS_DEBUG": "-O1", "CMAKE_EXE_LINKER_FLAGS": "-static",
               "CMAKE_SYSTEM_NAME": "Linux", "CMAKE_SYSTEM_PROCESSOR": "aarch64", "CMAKE_CXX_COMPILER": COMPILER}  # fmt: skip
    defined = [f"-D{name}={value}" for name, value in options.items()]
    for command in (["-S", KERNELS, "-B", folder, *defined], ["--build", folder, "--parallel", str(os.cpu_count())]):
        run = subprocess.run(["cmake", *command], capture_output=True, text=True)
        assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return folder / "check"


def test_neon_computes_what_the_definition_says(check: Path):
    run = subprocess.run([EMULATOR, check, "neon"], capture_output=True, text=True)
    assert run.returncode == 0 and "0 are wrong" in run.stdout, run.stdout[-3000:] + run.stderr
    assert run.stdout.count("neon ") > 100, "of every kind"


def test_sets_that_the_processor_lacks_are_not_run(check: Path):
    older = [EMULATOR, "-cpu", "cortex-a72"]  # without dot products: a Raspberry Pi 4
    for computer, name, runs in (([EMULATOR], "avx2", "runs plain, neon\n"), (older, "neon", "runs plain\n")):
        run = subprocess.run([*computer, check, name], capture_output=True, text=True)
        assert run.returncode == 1 and runs in run.stdout
