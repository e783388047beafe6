"""A rule for losses that jump: which step is to be undone, with the steps after it."""

from __future__ import annotations

import math
import statistics

import torch
from torch import Tensor

WINDOW = 50
"""Losses before a step that it is held against,"""
FEWEST = 10
"""and how many there must be."""


class SpikeRule:
    """A step's loss over `factor` times the median of the (up to 50) finite losses before it is a spike.

    Losses wait on the device until `find` is asked; they are sums over all ranks, so all ranks find the same.
    """

    def __init__(self, factor: float | None):
        self.factor = factor
        self.history: list[tuple[int, float]] = []
        self.waiting: list[tuple[int, Tensor]] = []
        self.stepped_over: set[int] = set()
        """Steps (from 1) whose documents are not trained on."""

    def add(self, step: int, loss: Tensor) -> None:
        if self.factor is not None:
            self.waiting.append((step, loss))

    def find(self) -> int | None:
        """The first step that is a spike among those added since the last call. Waits for the device."""
        waiting, self.waiting = self.waiting, []
        if not waiting:
            return None
        losses = torch.stack([loss for _, loss in waiting]).tolist()
        for (step, _), loss in zip(waiting, losses):
            recent = [value for _, value in self.history]
            if len(recent) >= FEWEST and loss > self.factor * statistics.median(recent):
                return step
            if math.isfinite(loss):
                self.history = [*self.history, (step, loss)][-WINDOW:]
        return None

    def state(self) -> dict[str, list]:
        """For a checkpoint's scalars; whole after `find`."""
        return {"losses": [list(pair) for pair in self.history], "stepped_over": sorted(self.stepped_over)}

    def load(self, state: dict[str, list]) -> None:
        """What was stepped over in this process stays so."""
        self.history = [(int(step), float(loss)) for step, loss in state["losses"]]
        self.waiting = []
        self.stepped_over |= set(state["stepped_over"])
