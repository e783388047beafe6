"""The step plan: which documents each optimizer step takes, and how they are laid out over micro-batches and ranks.

A plan follows from the lengths, the settings and (seed, epoch, step) alone. Every rank works it out for itself, with
no message between them and nothing to save but the number of the step: a resumed run goes on with the same plan.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from skytrain.data.packing import CostModel, pack_step
from skytrain.errors import UserError


@dataclass(frozen=True)
class StepPlan:
    epoch: int
    index: int
    """Of the step within its epoch, from 0."""
    rows: list[list[np.ndarray]]
    """rows[micro_batch][rank]: int64 indices of documents. An empty one is the idle row of weight 0."""
    tokens: int
    """Of the step, over all ranks."""
    targets: int
    """Trained tokens of the step, over all ranks: the loss's denominator."""


@dataclass(frozen=True)
class _Epoch:
    epoch: int
    order: np.ndarray
    """int64 [n], documents; the lengths and costs are in this order too."""
    lengths: np.ndarray
    costs: np.ndarray
    step_tokens: np.ndarray
    """int64 [steps]"""
    step_targets: np.ndarray


class Planner:
    """Plans of all steps of a run.

    lengths, targets: int64 [n], tokens and trained tokens of each document. Exactly one of `documents` (each step
    takes so many) and `tokens` (each step takes the next documents that fit in so many) is given, for all ranks
    together; an epoch's last step takes what is left. `max_steps` ends the run before its epochs do.
    Raises `UserError` for no documents, fewer than ranks, or one that is too long for a row or for a step.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        targets: np.ndarray,
        *,
        ranks: int,
        max_tokens: int,
        cost: CostModel,
        documents: int | None = None,
        tokens: int | None = None,
        seed: int = 0,
        epochs: int = 1,
        max_steps: int | None = None,
    ):
        if (documents is None) == (tokens is None):
            raise ValueError("give exactly one of documents and tokens")
        self.lengths = np.ascontiguousarray(lengths, dtype=np.int64)
        self.targets = np.ascontiguousarray(targets, dtype=np.int64)
        if self.lengths.shape != self.targets.shape:
            raise ValueError(f"lengths {self.lengths.shape} and targets {self.targets.shape} differ in shape")
        _check(self.lengths, ranks, max_tokens, tokens)
        self.ranks, self.max_tokens, self.seed = ranks, max_tokens, seed
        self.documents, self.tokens = documents, tokens
        self._costs = cost.integers(self.lengths, max_tokens)
        self._latest: _Epoch | None = None
        # Where each epoch begins, in steps of the run. With `tokens`, epochs differ in their number of steps.
        self._starts = [0]
        self._ends: list[np.ndarray] = []
        for epoch in range(epochs):
            if max_steps is not None and self._starts[-1] >= max_steps:
                break
            # With `documents`, every epoch is cut at the same places.
            self._ends.append(self._ends[0] if self._ends and documents is not None else self._step_ends(epoch))
            self._starts.append(self._starts[-1] + len(self._ends[-1]))
        self.total_steps = self._starts[-1] if max_steps is None else min(max_steps, self._starts[-1])

    def locate(self, step: int) -> tuple[int, int]:
        """(epoch, index within it) of a step of the run, 0 <= step < total_steps."""
        if not 0 <= step < self.total_steps:
            raise IndexError(f"step {step} of {self.total_steps}")
        epoch = bisect_right(self._starts, step) - 1
        return epoch, step - self._starts[epoch]

    def step(self, step: int) -> StepPlan:
        """The plan of one step, 0 <= step < total_steps, whatever was asked for before."""
        epoch, index = self.locate(step)
        whole = self._epoch(epoch)
        here = slice(self._ends[epoch][index - 1] if index else 0, self._ends[epoch][index])
        slots = pack_step(whole.lengths[here], whole.costs[here], self.ranks, self.max_tokens)
        by_slot = whole.order[here][slots.argsort(kind="stable")]
        counts = np.bincount(slots).tolist()
        counts += [0] * (-len(counts) % self.ranks)
        flat = [by_slot[start:end] for start, end in pairwise(accumulate(counts, initial=0))]
        rows = [flat[first : first + self.ranks] for first in range(0, len(flat), self.ranks)]
        return StepPlan(epoch, index, rows, int(whole.step_tokens[index]), int(whole.step_targets[index]))

    def _epoch(self, epoch: int) -> _Epoch:
        """The last one asked for is kept: steps are asked for in order."""
        latest = self._latest
        if latest is None or latest.epoch != epoch:
            order, starts = self._order(epoch), [0, *self._ends[epoch][:-1]]
            lengths, costs = self.lengths[order], self._costs[order]
            step_targets = np.add.reduceat(self.targets[order], starts)
            latest = _Epoch(epoch, order, lengths, costs, np.add.reduceat(lengths, starts), step_targets)
            self._latest = latest
        return latest

    def _order(self, epoch: int) -> np.ndarray:
        """Documents in the order of an epoch, int64 [n]."""
        # Sorted random keys rather than Generator.permutation: numpy may change the stream of a Generator's
        # methods between releases, but not that of a bit generator, and a run may be resumed with another numpy.
        keys = np.random.Philox(key=np.array([self.seed, epoch], dtype=np.uint64)).random_raw(len(self.lengths))
        return np.argsort(keys, kind="stable")

    def _step_ends(self, epoch: int) -> np.ndarray:
        """Where each step of an epoch ends in its order, int64 [steps]."""
        n = len(self.lengths)
        if self.documents is not None:
            return np.minimum(np.arange(self.documents, n + self.documents, self.documents), n)
        through = np.cumsum(self.lengths[self._order(epoch)])
        ends = [0]
        while ends[-1] < n:
            before = through[ends[-1] - 1] if ends[-1] else 0
            ends.append(int(np.searchsorted(through, before + self.tokens, side="right")))
        return np.array(ends[1:])


def _check(lengths: np.ndarray, ranks: int, max_tokens: int, tokens: int | None) -> None:
    if len(lengths) == 0:
        raise UserError("the data set has no documents: prepare it again from rows that have something to train")
    if len(lengths) < ranks:
        raise UserError(
            f"the data set has {len(lengths)} documents for {ranks} ranks: start at most {len(lengths)} ranks"
        )
    if lengths.min() < 1:
        raise UserError(f"document {lengths.argmin()} of the data set has no tokens: prepare it again")
    limits = [("batch.max_tokens", max_tokens)] + ([("batch.tokens", tokens)] if tokens is not None else [])
    for key, limit in limits:
        too_long = np.flatnonzero(lengths > limit)
        if len(too_long):
            raise UserError(
                f"{key} = {limit}: {len(too_long)} of {len(lengths)} documents are longer, the first is document "
                f"{too_long[0]} with {lengths[too_long[0]]} tokens: set {key} to at least {lengths.max()}, "
                f"or prepare the data with a smaller maximum length"
            )
