"""Try a table of configurations at once, one process a GPU, and measure each on mail kept aside. Knows stages and measures.

The table is JSON: name -> {"shape": {...}, "pretrain": {...}, "tune": {...}, "start": checkpoint, "teachers": [checkpoints]},
each part optional, fields as in Shape and TrainConfig. A stage runs if it is named. A sweep started again goes on.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

RESULTS = "results.jsonl"


def sweep(table: Path, data: Path, tokenizer: Path, out: Path, only: Sequence[str] = ()) -> None:
    """Run each configuration of `table` that has no line in `out`/results.jsonl yet, and print the line that it adds."""
    out.mkdir(parents=True, exist_ok=True)
    done = {line["name"] for line in results(out)}
    waiting: queue.Queue[str] = queue.Queue()
    for name in only or json.loads(table.read_text(encoding="utf-8")):
        if name not in done:
            waiting.put(name)

    def work(gpu: str) -> None:
        while True:
            try:
                name = waiting.get_nowait()
            except queue.Empty:
                return
            (out / name).mkdir(exist_ok=True)
            command = [sys.executable, "-m", "pretrain", "attempt", name, "--table", str(table), "--data", str(data)]
            command += ["--tokenizer", str(tokenizer), "--out", str(out / name)]
            with (out / name / "output.log").open("a", encoding="utf-8") as log:
                ended = subprocess.run(command, stdout=log, stderr=log, env={**os.environ, "CUDA_VISIBLE_DEVICES": gpu})
            last = [json.dumps(line) for line in results(out) if line["name"] == name]
            print(last[-1] if last else json.dumps({"name": name, "failed": ended.returncode}), flush=True)

    threads = [threading.Thread(target=work, args=(gpu,)) for gpu in visible()]
    for t in threads:
        t.start()
    for t in threads:
        t.join()


def visible() -> list[str]:
    """The GPUs that may be used; one process on the CPU where there is none."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())] or [""]


def results(out: Path) -> list[dict[str, Any]]:
    """The lines of results.jsonl."""
    file = out / RESULTS
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def attempt(spec: Mapping[str, Any], data: Path, tokenizer: Path, out: Path) -> None:
    """Run the stages of one configuration into `out`, measure what comes out, add a line to the results beside `out`."""
    from pretrain import tokenizer as tk
    from pretrain.model import Shape
    from pretrain.train import DEFAULTS, LAST, load_model, train

    began = time.monotonic()
    shape = replace(Shape(), **{**spec.get("shape", {}), "vocab": tk.load(tokenizer).get_vocab_size()})
    start = Path(spec["start"]) if spec.get("start") else None
    for stage in ("pretrain", "tune"):
        if stage in spec:
            config = replace(DEFAULTS[stage], **spec[stage])
            train(config, data, out / stage, shape, start, [Path(t) for t in spec.get("teachers", ())])
            start = out / stage / LAST
    assert start, "neither a stage nor a checkpoint to start from"
    trained = time.monotonic() - began
    model = load_model(start)
    save_half(out / "model.pt", start)
    line = {"name": out.name, **measured(model, data, tokenizer, out, spec), "train_seconds": round(trained)}
    line["seconds"] = round(time.monotonic() - began)
    with (out.parent / RESULTS).open("a", encoding="utf-8") as f:
        f.write(json.dumps(line) + "\n")


def measured(model: Any, data: Path, tokenizer: Path, out: Path, spec: Mapping[str, Any]) -> dict[str, Any]:
    """The product's measures on authors kept aside, the items' bits, and what mail costs that was trained on.

    spec: `mails`, `drafts` and `draft_tokens` say how many, if not all. Drafts are left in `out`/drafts.txt.
    """
    import torch

    from panza import measure as product
    from panza.models import Sampling, complete_batch
    from pretrain import measure as m
    from pretrain import tokenizer as tk
    from pretrain.model import to_hugging_face
    from pretrain.pack import read_kept, read_mails, validation_items

    loaded = tk.load(tokenizer)
    ends = (loaded.token_to_id(tk.END_OF_TEXT), loaded.token_to_id(tk.END))
    net = m.as_model(to_hugging_face(model, *ends).to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer)
    mails, kept_back = m.some(read_kept(data, "authors"), spec.get("mails", 1500)), read_kept(data, "mails")
    count, found = spec.get("drafts", 300), {}
    found["bits_per_byte"], found["bits_per_byte_cleaned"] = bits(net, mails), bits(net, mails, "body")
    authors = {k.author for k in kept_back}
    seen = [k for k in read_mails(data) if k.part == "train" and k.author in authors]
    found["seen_to_unseen"] = bits(net, m.some(seen, 1000)) / bits(net, m.some(kept_back, 1000))
    found["bits_per_byte_items"] = m.instructed(net, m.some(validation_items(data), 2 * count))
    asked = [*m.heldout_items(read_kept(data, "authors"), count), *m.by_hand()]
    encode = net.chat_tokenizer.tokenizer.encode
    prompts = [encode(i.prompt, add_special_tokens=False)[-(net.context - product.MOST_TOKENS) :] for i in asked]
    written = dict(complete_batch(net, prompts, Sampling(spec.get("draft_tokens", product.MOST_TOKENS)), batch=80))
    texts = [(written[i].text, written[i].ended) for i in range(len(asked))]
    blocks = [
        f"{i.instruction}\n-----\n{t}{'' if e else ' [no end]'}\n" for i, (t, e) in zip(asked, texts, strict=True)
    ]
    by_hand = len(m.by_hand())
    (out / "drafts.txt").write_text("=====\n".join(blocks[-by_hand:] + blocks[:-by_hand]), encoding="utf-8")
    found |= m.score(asked[:-by_hand], texts[:-by_hand])
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()}


def bits(net: Any, mails: Sequence[Any], form: str = "as_written") -> float:
    """Bits for each byte of plain mails, as their authors wrote them or clean ("body")."""
    from panza import measure as product
    from pretrain import measure as m

    pairs = [(product.header(x), x.body) for x in (m.as_message(k, form) for k in mails)]
    told = product.text_bits(net, pairs, batch_tokens=20_000)
    scored = [(b, len(text.encode())) for b, (_, text) in zip(told, pairs, strict=True) if b is not None]
    return sum(b for b, _ in scored) / max(sum(n for _, n in scored), 1)


def save_half(path: Path, checkpoint: Path) -> None:
    """The weights of a checkpoint in bf16, without the optimiser's state."""
    import torch

    state = torch.load(checkpoint, weights_only=True, map_location="cpu")
    half = {name: w.bfloat16() for name, w in state["model"].items()}
    torch.save({"model": half, "shape": state["shape"]}, path)
