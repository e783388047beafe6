"""What is to be trained: the model's shapes, and the lengths of the documents as they are packed into rows."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np

from skytrain import flops, hf
from skytrain.config import Config
from skytrain.data.dataset import TokenDataset
from skytrain.data.plan import Planner
from skytrain.errors import UserError
from skytrain.model import ModelConfig
from skytrain.plan.known import SPREAD, known_shapes
from skytrain.rotary import Rope

SHORTEST = 200
STEPS_LOOKED_AT = 600
"""Of a longer run, so many steps, evenly spread, stand for all."""


def model_shapes(config: Config) -> tuple[ModelConfig, str]:
    """(shapes, where they are from): the model's folder, else the known model that plan.model names.

    UserError where there is neither, or a folder that cannot be read.
    """
    folder = Path(config.model.path)
    if (folder / "config.json").exists():
        return hf.read_config(folder), str(folder)
    if config.plan.model is None:
        raise UserError(
            f"model.path = {config.model.path!r}: no config.json there; name a model folder, or set plan.model to one "
            f"of {', '.join(known_models())}"
        )
    if config.plan.model not in known_models():
        raise UserError(f"plan.model = {config.plan.model!r}: unknown; give one of {', '.join(known_models())}")
    return known_models()[config.plan.model], f"{config.plan.model}, by its published shapes"


@functools.cache
def known_models() -> dict[str, ModelConfig]:
    found = {}
    for name, keys in known_shapes().items():
        others = {key: value for key, value in keys.items() if key != "rope_theta"}
        found[name] = ModelConfig(rope=Rope("default", keys["rope_theta"]), **others)
    return found


def document_lengths(config: Config, data: str | None) -> tuple[np.ndarray, str]:
    """(int64 tokens of each document of an epoch, where they are from): of --data, else of data.path where there is a
    finished data set, else drawn as plan.documents and plan.mean_tokens say. UserError where there is none of these."""
    path = Path(data or config.data.path)
    if data is not None or (path / "dataset.json").exists():
        return TokenDataset.open(path).lengths, str(path)
    plan = config.plan
    if plan.documents is None or plan.mean_tokens is None:
        raise UserError(
            f"data.path = {config.data.path!r}: no finished data set there; give one with --data, or set "
            "plan.documents and plan.mean_tokens to what you expect"
        )
    longest = config.batch.max_tokens
    return (
        drawn_lengths(plan.documents, plan.mean_tokens, longest),
        f"{plan.documents:,} documents drawn with a mean of {plan.mean_tokens:,} and at most {longest:,} tokens",
    )


def drawn_lengths(documents: int, mean: int, longest: int) -> np.ndarray:
    """int64 [documents]: log-normal, cut at SHORTEST and `longest`, the scale such that the mean is met after the cut.

    The same for the same arguments. UserError for a mean that is not between the cuts.
    """
    shortest = min(SHORTEST, longest)
    if not shortest <= mean <= longest:
        raise UserError(
            f"plan.mean_tokens = {mean}: must be from {shortest} to batch.max_tokens = {longest}; set one of them"
        )
    # Evenly spaced quantiles rather than random draws: the same on every machine, and no tail by luck.
    quantile = NormalDist(sigma=SPREAD).inv_cdf
    shape = np.exp([quantile((i + 0.5) / documents) for i in range(documents)])
    low, high = shortest / shape.max(), longest / shape.min()
    for _ in range(60):
        scale = np.sqrt(low * high)
        low, high = (scale, high) if np.clip(shape * scale, shortest, longest).mean() < mean else (low, scale)
    return np.clip(np.rint(shape * scale), shortest, longest).astype(np.int64)


@dataclass(frozen=True)
class Packed:
    """A run's rows. tokens, squares: float64 [micro-batches looked at, ranks], sums over each row's documents of their
    lengths and of the squares of these."""

    tokens: np.ndarray
    squares: np.ndarray
    steps: int
    """Of the run."""
    share: float
    """Steps of the run for each step looked at."""
    micro_batches: int
    """Most in a step."""

    @property
    def fullest(self) -> int:
        """Tokens of the longest row."""
        return int(self.tokens.max())

    @property
    def run_tokens(self) -> float:
        return float(self.tokens.sum()) * self.share

    @property
    def run_squares(self) -> float:
        return float(self.squares.sum()) * self.share


def pack(config: Config, model: ModelConfig, lengths: np.ndarray, ranks: int, max_tokens: int) -> Packed:
    """As a run on `ranks` ranks packs them. UserError where they cannot be packed."""
    planner = Planner(
        lengths, np.zeros_like(lengths), ranks=ranks, max_tokens=max_tokens, documents=config.batch.documents,
        tokens=config.batch.tokens, seed=config.run.seed, cost=flops.cost_model(model, max_tokens),
        epochs=config.train.epochs, max_steps=config.train.max_steps,
    )  # fmt: skip
    steps = planner.total_steps
    looked_at = np.unique(np.linspace(0, steps - 1, min(steps, STEPS_LOOKED_AT)).astype(int))
    plans = [planner.step(int(step)).rows for step in looked_at]
    rows = [[lengths[documents].astype(np.float64) for documents in ranks] for plan in plans for ranks in plan]
    return Packed(
        np.array([[row.sum() for row in ranks] for ranks in rows]),
        np.array([[np.square(row).sum() for row in ranks] for ranks in rows]),
        steps,
        steps / len(looked_at),
        max(len(plan) for plan in plans),
    )
