"""What a run tells: the fields and their units, resumed files, TensorBoard, and the hardware table."""

import json

import pytest
import torch

from skytrain.config import Log
from skytrain.metrics import Metrics
from skytrain.parallel import World
from skytrain.plan.hardware import peak_flops


def world(rank: int = 0, size: int = 2) -> World:
    return World(rank, size, torch.device("cpu"), 1, None, None)


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_line_has_rates_over_the_steps_since_the_last(tmp_path, monkeypatch, capsys):
    clock = [100.0]
    monkeypatch.setattr("skytrain.metrics.time.perf_counter", lambda: clock[0])
    metrics = Metrics(tmp_path, Log(tensorboard=False, price_per_gpu_hour=3.6), world(), done=0, total=10)
    metrics.peak = 1e3
    for _ in range(2):
        metrics.count(1000, 400, 5e3, 1e3)
    clock[0] += 4.0
    metrics.line(2, loss=1.5, grad_norm=0.5, lr=1e-4, epoch=0, skipped=0)
    metrics.count(300, 100, 0.0)
    clock[0] += 1.0
    metrics.line(3, loss=float("nan"), grad_norm=float("inf"), lr=1e-4, epoch=0, skipped=1)
    metrics.close()
    first, second = lines(tmp_path)
    assert first["tokens"] == 2000
    assert first["tokens_per_s"] == 500.0
    assert first["trained_tokens_per_s"] == 200.0
    assert first["step_s"] == 2.0
    assert first["eta_s"] == 16.0
    assert first["mfu"] == 1e4 / 4.0 / (1e3 * 2)
    assert first["money"] == pytest.approx(4.0 / 3600 * 2 * 3.6)
    assert first["peak_memory_gib"] > 0.01
    assert (first["recomputed"], second["recomputed"]) == (0.2, 0.0)
    assert (second["tokens_per_s"], second["loss"], second["grad_norm"]) == (300.0, None, None)
    printed = capsys.readouterr().out.splitlines()
    assert "step  2/10" in printed[0]
    assert "ETA 0:16" in printed[0]
    assert "20% done again" in printed[0]
    assert "1 skipped" in printed[1]


def test_only_the_first_rank_writes(tmp_path, capsys):
    metrics = Metrics(tmp_path, Log(), world(rank=1), done=0, total=1)
    metrics.count(1, 1, 1.0)
    metrics.line(1, loss=1.0, grad_norm=1.0, lr=1.0, epoch=0, skipped=0)
    metrics.say("words")
    metrics.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_a_resumed_file_holds_no_step_twice_and_goes_on_with_the_money(tmp_path):
    texts = [json.dumps({"step": step, "loss": 1.0, "money": 10.0 * step}) for step in (1, 2, 3)]
    texts += ["[1, 2]", "{}", "[" * 100_000, '{"step": 2, "money": "much"}'.replace("2", "9"), '{"step": 4, "lo']
    (tmp_path / "metrics.jsonl").write_bytes("\n".join(texts).encode() + b"\xff")
    metrics = Metrics(tmp_path, Log(tensorboard=False, price_per_gpu_hour=1.0), world(), done=2, total=4)
    metrics.count(1, 1, 1.0)
    metrics.line(3, loss=2.0, grad_norm=1.0, lr=1.0, epoch=0, skipped=0)
    metrics.close()
    seen = lines(tmp_path)
    assert [(line["step"], line["loss"]) for line in seen] == [(1, 1.0), (2, 1.0), (3, 2.0)]
    assert seen[2]["money"] == pytest.approx(20.0, abs=0.1)


def test_tensorboard_holds_the_same_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metrics = Metrics(tmp_path, Log(), world(), done=0, total=2)
    for step in (1, 2):
        metrics.count(10, 5, 1.0)
        metrics.line(step, loss=2.0 / step, grad_norm=1.0, lr=1e-3, epoch=0, skipped=0)
    metrics.write({"step": 2, "validation_loss": 0.75})
    metrics.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 2.0), (2, 1.0)]
    assert [(e.step, e.value) for e in events.Scalars("validation_loss")] == [(2, 0.75)]


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)
def test_known_devices(name, tflops):
    assert peak_flops(name) == tflops * 1e12


def test_an_unknown_device_has_no_peak():
    assert peak_flops("Some GPU 9000") is None
    assert peak_flops("") is None
