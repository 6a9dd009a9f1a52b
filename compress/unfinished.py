"""Finished blocks in a directory beside the output: what a killed run leaves and the next one takes up.

Knows modules and files; knows no method.
"""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from compress import ranks
from compress.checkpoint import layer_spec, replace_layers_, share_, unshared
from compress.errors import BROKEN, CompressError
from compress.files import make, new_file, remove_own
from compress.linear import quantized_layers
from compress.progress import say


class Unfinished:
    """The blocks that are finished under these settings. settings: all that the result depends on, as JSON."""

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self.folder = out.with_name(out.name + ".unfinished")
        print_of = sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
        known = self.folder / "fingerprint"
        if ranks.first() and not (known.is_file() and known.read_text() == print_of):
            if known.is_file():
                say(f"{self.folder} belongs to other settings: starting anew")
            remove_own(self.folder, known.name)
            make(self.folder)
            known.write_text(print_of)
        ranks.wait()

    def path(self, name: str) -> Path:
        return self.folder / name

    def save(self, index: int, block: nn.Module, notes: dict[str, Any]) -> None:
        """A block, whole or not at all. notes: JSON to come back with it."""
        tensors, shared = unshared(block.state_dict())
        layers = {name: layer_spec(layer) for name, layer in quantized_layers(block).items()}
        meta = json.dumps({"layers": layers, "shared": shared, "notes": notes})
        with new_file(self.path(f"{index}.safetensors")) as part:
            save_file(tensors, part, metadata={"block": meta})

    def load_(self, index: int, block: nn.Module) -> dict[str, Any] | None:
        """Turn `block` into the finished one and return its notes; None, and nothing done, if there is none."""
        path = self.path(f"{index}.safetensors")
        if not ranks.same(path.is_file()):
            return None
        try:
            with safe_open(path, framework="pt") as file:
                meta = json.loads(file.metadata()["block"])
                state = {key: file.get_tensor(key) for key in file.keys()}
            replace_layers_(block, meta["layers"])
            state |= {name: state[owner] for name, owner in meta["shared"].items()}
            block.load_state_dict(state, assign=True)
            share_(block, meta["shared"])
            return meta["notes"]
        except (*BROKEN, CompressError) as error:
            raise CompressError(f"'{path}' is damaged: delete {self.folder} and start anew") from error

    def remove(self) -> None:
        ranks.wait()
        if ranks.first():
            shutil.rmtree(self.folder, ignore_errors=True)
