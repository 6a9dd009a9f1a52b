"""The tables that trellis codes start from, learned on Gaussian sequences. Knows no weight.

`python -m compress.luts` learns them again and writes them.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from compress.viterbi import Viterbi

FILE = Path(__file__).with_name("luts.safetensors")
WINDOWS, STEPS = (6, 7, 8), (2, 3, 4)  # bits of a state, new bits a weight
T, C = 128, 96  # steps and chains of one iteration
SETTLE = 30  # last iterations, which average; the noise of few samples before them leads out of poor optima


def default_lut(window: int, step: int) -> Tensor:
    """(2^window,) fp32: the value of each state, for targets of unit variance."""
    return _tables()[f"{window}.{step}"].float()


@lru_cache(maxsize=1)
def _tables() -> dict[str, Tensor]:
    return load_file(FILE)


def learn(window: int, step: int, seed: int = 0, iterations: int = 200) -> Tensor:
    """Lloyd's iterations: the best paths through fresh Gaussian sequences, then each state's mean target.

    Starts from the quantiles of the normal distribution in random order.
    """
    S, chance = 1 << window, torch.Generator().manual_seed(seed)
    lut = torch.special.ndtri((torch.arange(S) + 0.5) / S)[torch.randperm(S, generator=chance)]
    count, total, even = torch.zeros(S), torch.zeros(S), torch.ones(T, C)
    for left in range(iterations, 0, -1):
        x = torch.randn(T, C, generator=chance)
        states = Viterbi(lut, step, T, C).paths(x, even).flatten()
        kept = 0.95 if left < SETTLE else 0
        count = kept * count + torch.bincount(states, minlength=S)
        total = kept * total + torch.zeros(S).index_add_(0, states, x.flatten())
        lut = torch.where(count > 0, total / count, lut)
    return lut


def gaussian_error(lut: Tensor, step: int, seed: int, steps: int = 1024, chains: int = 64) -> float:
    """Mean squared error of the best paths through `chains` Gaussian sequences of unit variance."""
    x = torch.randn(steps, chains, generator=torch.Generator().manual_seed(seed))
    states = Viterbi(lut, step, steps, chains).paths(x, torch.ones_like(x))
    return (x - lut[states]).square().mean().item()


def write(path: Path = FILE) -> None:
    """Learn all tables and write them."""
    tables = {f"{window}.{step}": learn(window, step).half() for window in WINDOWS for step in STEPS}
    save_file(tables, path)


if __name__ == "__main__":
    write()
