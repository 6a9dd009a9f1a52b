"""Several processes, one a GPU (torchrun): who reads what, and how they agree. One process needs none of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from compress.checkpoint import share_, unshared
from compress.weight import QuantizedWeight


def join() -> torch.device:
    """Join the other processes that torchrun started, if it did; the device of this one."""
    gpu = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", 0))
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    if gpu:
        torch.cuda.set_device(local)
    return torch.device("cuda", local) if gpu else torch.device("cpu")


def leave() -> None:
    """End what `join` began."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def first() -> bool:
    """Whether this process writes files and says what happens."""
    return rank() == 0


def share(rows: Tensor) -> Tensor:
    """This process's rows of what all of them work through."""
    return rows[rank() :: world()]


def add_up_(*tensors: Tensor) -> None:
    """Let each tensor be the sum of it over all processes."""
    for tensor in tensors if world() > 1 else ():
        dist.all_reduce(tensor)


def wait() -> None:
    """Go on when all have come here."""
    if world() > 1:
        dist.barrier()


def same(value: Any) -> Any:
    """Rank 0's JSON value, on all."""
    return value if world() == 1 else _from(0, value)


def all_of(value: Any) -> list[Any]:
    """The JSON value of every process."""
    made = [value] * world()
    if world() > 1:
        dist.all_gather_object(made, value)
    return made


def send_weights(weights: Sequence[QuantizedWeight] | None, owner: int, device: torch.device) -> list[QuantizedWeight]:
    """The owner's compressed weights on all processes; None on those that have not made them."""
    if world() == 1:
        return list(weights)
    tensors, shared = unshared(nn.ModuleList(weights).state_dict()) if owner == rank() else ({}, {})
    specs, shared = _from(owner, ([w.spec() for w in weights or ()], shared))
    made = nn.ModuleList(weights or [QuantizedWeight.from_spec(spec) for spec in specs]).to(device)
    share_(made, shared)
    for name, tensor in sorted(unshared(made.state_dict())[0].items()):
        raw = torch.empty(tensor.shape, dtype=tensor.dtype, device=device).copy_(tensors.get(name, tensor))
        dist.broadcast(raw.view(torch.uint8) if raw.dim() else raw, owner)
        made.state_dict()[name].copy_(raw)
    return list(made)


def _from(owner: int, value: Any) -> Any:
    box = [value]
    dist.broadcast_object_list(box, owner)
    return box[0]
