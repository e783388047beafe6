"""Small runs for tests: a tokenised data set from plain lists, settings, and steps whose gradients are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from skytrain import config, optim, parallel
from skytrain.config import Config
from skytrain.data.chat import tokenizer_digest
from skytrain.data.dataset import DatasetWriter
from skytrain.run import Run, prepare
from skytrain.trainer import train_step

Document = tuple[list[int], list[int]]
"""(token ids, 1 where the token is a target)"""


def random_documents(count: int, *, vocab: int, shortest: int = 3, longest: int = 40, seed: int = 0) -> list[Document]:
    """Documents of uneven lengths, about half of whose tokens are targets, at least one of them."""
    rng = np.random.default_rng(seed)
    documents = []
    for _ in range(count):
        length = int(rng.integers(shortest, longest + 1))
        trained = (rng.random(length) < 0.5).astype(int)
        trained[0], trained[-1] = 0, 1
        documents.append((rng.integers(0, vocab, length).tolist(), trained.tolist()))
    return documents


def write_data(folder: Path, documents: list[Document], model: Path) -> Path:
    """A finished data set for the tokenizer of `model`."""
    tokenizer, template = tokenizer_digest(model)
    with DatasetWriter(folder, tokenizer_sha256=tokenizer, chat_template_sha256=template, max_length=1 << 20) as writer:
        for index, (tokens, trained) in enumerate(documents):
            writer.add(np.asarray(tokens, np.uint32), np.asarray(trained, np.uint8), {"id": str(index)})
        writer.finish()
    return folder


def settings(model: Path, data: Path, run: Path, **overrides: Any) -> Config:
    """A one-epoch fp32 run. Overrides are section__key=value."""
    values: dict[str, dict[str, Any]] = {
        "run": {"dir": str(run)},
        "model": {"path": str(model)},
        "data": {"path": str(data)},
        "batch": {"documents": 4, "max_tokens": 512},
        "optim": {"lr": 1e-3},
        "schedule": {"name": "constant"},
        "train": {"dtype": "float32", "device": "cpu", "threads": 1, "timeout_seconds": 60},
        "export": {"dtype": "float32"},
        "log": {"tensorboard": False},
    }
    for key, value in overrides.items():
        section, name = key.split("__")
        values.setdefault(section, {})[name] = value
    return config.resolve({s: {k: v for k, v in table.items() if v is not None} for s, table in values.items()}, "test")


def start(c: Config) -> Run:
    """The run before its first step, on this rank."""
    world = parallel.start(c)
    return parallel.together(lambda: prepare(c, world, resume=False))


def full(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of the whole tensor, on every rank."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def steps(run: Run, count: int) -> list[dict[str, Any]]:
    """Does `count` steps; of each: loss, norm (as the trainer logs them) and the whole gradient before clipping."""
    seen: list[dict[str, Any]] = []
    update = run.optimizer.step

    def record(rate: float, divisor: torch.Tensor, skip: torch.Tensor) -> None:
        gradients = {name: full(p.grad) for name, p in run.model.named_parameters()}
        update(rate, divisor, skip)
        clipped = {name: full(p.grad) for name, p in run.model.named_parameters()}
        seen.append({"gradients": gradients, "clipped": clipped, "skip": skip.item()})

    run.optimizer.step = record  # type: ignore[method-assign]
    for _ in range(count):
        step = run.feed[run.done]
        rate = optim.learning_rate(run.done, run.total, run.config.schedule, run.config.optim.lr)
        loss, norm = train_step(run, step, rate)
        seen[-1] |= {"loss": loss.item(), "norm": norm.item(), "rate": rate, "micro_batches": len(step.rows)}
        run.done += 1
    run.optimizer.step = update  # type: ignore[method-assign]
    return seen


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {name: full(p) for name, p in run.model.named_parameters()}


def set_weights(run: Run, tensors: dict[str, torch.Tensor]) -> None:
    """On one rank."""
    with torch.no_grad():
        for name, p in run.model.named_parameters():
            optim.local(p).copy_(tensors[name])
