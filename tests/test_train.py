"""Training: the loss is on the mail alone, it falls, a killed run goes on as if nothing had happened."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from panza import adapters, models
from panza.dataset import Example, encode
from panza.train import Parts, TrainConfig, _batches, losses, mean_loss, schedule, train
from panza.types import UserError

CONFIG = TrainConfig(epochs=5, lr=2e-2, batch_tokens=600, patience=9, dropout=0.1, rank=4, alpha=8)


def examples(n: int) -> list[Example]:
    days = ["Monday", "Tuesday", "Friday"]
    return [
        Example(
            f"m{i}",
            [
                {"role": "system", "content": "You write mail."},
                {"role": "user", "content": f"Instruction: meet {days[i % 3]} at {i}"},
            ],
            f"Hello Anna,\n\nwe meet on {days[i % 3]} at {i}:00.\n\nAll the best,\nMara",
        )
        for i in range(n)
    ]


def loaded(base: Path) -> tuple:
    net, tokenizer = models.load_base(str(base))
    chat_tokenizer = models.ChatTokenizer(tokenizer)
    return net, encode(examples(24), chat_tokenizer, 400)


def test_the_loss_is_that_of_the_answer_alone(tiny_base: Path) -> None:
    net, encoded = loaded(tiny_base)
    for item, (nll, tokens) in zip(encoded[:5], losses(net, encoded[:5], batch_tokens=2000), strict=True):
        ids = torch.tensor([item.ids])
        with torch.no_grad():
            logp = net(input_ids=ids).logits[0, :-1].log_softmax(-1)
        expected = -sum(logp[t - 1, item.ids[t]].item() for t, counts in enumerate(item.mask) if counts)
        assert tokens == sum(item.mask)
        assert nll == pytest.approx(expected, rel=1e-4)


def test_batches_hold_every_item_once_and_respect_the_budget(tiny_base: Path) -> None:
    _, encoded = loaded(tiny_base)
    for epoch in range(3):
        batches = _batches(encoded, CONFIG, epoch)
        assert sorted(i for b in batches for i in b) == list(range(24))
        assert all(len(b) * max(len(encoded[i].ids) for i in b) <= CONFIG.batch_tokens for b in batches if len(b) > 1)
    assert _batches(encoded, CONFIG, 0) != _batches(encoded, CONFIG, 1)


def test_training_lowers_the_loss_and_the_folder_holds_the_best_adapter(tiny_base: Path, tmp_path: Path) -> None:
    net, encoded = loaded(tiny_base)
    report = train(
        net, Parts(encoded[:16], encoded[16:20], encoded[20:]), tmp_path / "voice", CONFIG, {"method": "lora"}
    )
    assert report["validation_after"] < 0.9 * report["validation_before"]
    files = {p.name for p in (tmp_path / "voice").iterdir()}
    assert files == {"adapter_model.safetensors", "adapter_config.json", "report.json"}
    assert json.loads((tmp_path / "voice" / "report.json").read_text()) == report
    assert not (tmp_path / "voice.part").exists()
    again = models.load(str(tiny_base), tmp_path / "voice").net
    assert mean_loss(again, encoded[16:20], CONFIG) == pytest.approx(report["validation_after"], rel=1e-4)
    assert mean_loss(again, encoded[20:], CONFIG) == pytest.approx(report["loss_after"], rel=1e-4)


def test_it_stops_when_validation_rises(tiny_base: Path, tmp_path: Path) -> None:
    net, encoded = loaded(tiny_base)
    strangers = [Example(e.source, e.chat, "zq 77 xk / jw 93 vv % kk") for e in examples(3)]
    _, tokenizer = models.load_base(str(tiny_base))
    config = TrainConfig(epochs=30, lr=3e-2, batch_tokens=1200, patience=1, rank=4, alpha=8)
    parts = Parts(encoded[:9], encode(strangers, models.ChatTokenizer(tokenizer), 400), [])
    report = train(net, parts, tmp_path / "voice", config, {})
    assert len(report["epochs"]) < 30
    assert report["validation_after"] == pytest.approx(min(report["epochs"]), abs=1e-3)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(
    tiny_base: Path, tmp_path: Path, dropout: float
) -> None:
    """Killed in its second epoch, after a step that no checkpoint has: at each step the run waits to be let on."""
    from safetensors.torch import load_file

    config = replace(CONFIG, dropout=dropout)

    def run(folder: Path) -> None:
        net, encoded = loaded(tiny_base)
        train(net, Parts(encoded[:16], encoded[16:20], encoded[20:]), folder, config, {})

    whole, killed = tmp_path / "whole" / "voice", tmp_path / "killed" / "voice"
    run(whole)
    script = textwrap.dedent(
        f"""
        import sys; sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parent.parent)]!r}
        from pathlib import Path
        import dataclasses, torch, test_train, panza.train as t
        torch.set_num_threads({torch.get_num_threads()})  # other tests may have changed it: sums are rounded by it
        t._Run.update.__globals__["_SAVE_EVERY"] = 2
        net, encoded = test_train.loaded(Path({str(tiny_base)!r}))
        config = dataclasses.replace(test_train.CONFIG, dropout={dropout})
        say = lambda done, total, note="": (print(note, flush=True), sys.stdin.readline())
        t.train(net, t.Parts(encoded[:16], encoded[16:20], encoded[20:]), Path({str(killed)!r}), config, {{}}, say)
        """
    )
    command, steps = [sys.executable, "-c", script], 0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin and child.stdout
        while (steps := steps + child.stdout.readline().startswith("epoch 2/")) < 3:
            print(file=child.stdin, flush=True)
        child.kill()
    state = json.loads((killed.with_name("voice.part") / "state.json").read_text())
    assert (state["epoch"], state["step"]) == (1, 2) and not killed.exists(), "it was to be killed in the middle"
    run(killed)

    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (whole, killed))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6)


def test_an_adapter_of_another_base_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    net, encoded = loaded(tiny_base)
    config = TrainConfig(epochs=1, rank=2, alpha=4)
    train(net, Parts(encoded[:6], encoded[6:8], []), tmp_path / "voice", config, {"base": "another"})
    other, _ = models.load_base(str(tiny_base))
    with torch.no_grad():
        other.model.norm.weight.add_(1)
    with pytest.raises(UserError, match="other weights than 'another'"):
        adapters.attach_saved(other, tmp_path / "voice")


def test_nothing_to_train_on_is_a_sentence(tiny_base: Path, tmp_path: Path) -> None:
    net, _ = loaded(tiny_base)
    with pytest.raises(UserError, match="no mails to train on"):
        train(net, Parts([], [], []), tmp_path / "voice", CONFIG, {})


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"rank": 0}, {"lr": 0.0}, {"dropout": 1.5}, {"heldout": 0.8, "validation": 0.2}]
)
def test_settings_out_of_range_are_a_sentence(wrong: dict) -> None:
    with pytest.raises(UserError, match=next(iter(wrong)).replace("_", "-")):
        TrainConfig(**wrong)


def test_training_that_diverges_says_what_to_change(tiny_base: Path, tmp_path: Path) -> None:
    net, encoded = loaded(tiny_base)
    with torch.no_grad():
        net.model.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="give a lower one"):
        train(net, Parts(encoded[:6], [], []), tmp_path / "voice", CONFIG, {})


def test_without_mails_kept_aside_no_loss_is_reported(tiny_base: Path, tmp_path: Path) -> None:
    net, encoded = loaded(tiny_base)
    report = train(net, Parts(encoded[:6], [], []), tmp_path / "voice", TrainConfig(epochs=1, rank=2, alpha=4), {})
    assert report["loss_before"] is report["loss_after"] is report["validation_after"] is None
    assert (report["heldout"], report["validation"], report["pairs"]) == (0, 0, 6)


def test_schedule_rises_then_falls_to_a_tenth() -> None:
    rates = [schedule(s, 100, 0.1) for s in range(100)]
    assert max(rates) == pytest.approx(1.0) and rates.index(max(rates)) in (9, 10)
    assert rates[0] < 0.2 and rates[-1] == pytest.approx(0.1, abs=0.02)
