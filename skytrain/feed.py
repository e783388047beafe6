"""Rows on the device, made one step ahead of their use by a host thread."""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from skytrain.data.batch import pack_row
from skytrain.data.dataset import TokenDataset
from skytrain.data.plan import Planner, StepPlan


@dataclasses.dataclass(frozen=True)
class Row:
    """One micro-batch of one rank: what `CausalLM.forward` takes."""

    input_ids: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    target_index: Tensor
    labels: Tensor


@dataclasses.dataclass(frozen=True)
class Step:
    """This rank's rows of one optimizer step, and the counts of the whole step over all ranks."""

    plan: StepPlan
    rows: list[Row]


class Feed:
    """`feed[step]` is this rank's part of a step. Steps asked for in order are ready when they are asked for.

    multiple: of tokens, which each row is filled to.
    """

    def __init__(self, dataset: TokenDataset, planner: Planner, rank: int, device: torch.device, multiple: int = 1):
        self.dataset, self.planner, self.rank, self.device = dataset, planner, rank, device
        self.multiple = multiple
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="feed")
        self.ahead: tuple[int, Future[Step]] | None = None

    def __getitem__(self, step: int) -> Step:
        if self.ahead is not None and self.ahead[0] == step:
            result = self.ahead[1].result()
        else:
            result = self._make(step)
        following = step + 1
        self.ahead = (
            (following, self.thread.submit(self._make, following)) if following < self.planner.total_steps else None
        )
        return result

    def close(self) -> None:
        self.thread.shutdown(cancel_futures=True)

    def _make(self, step: int) -> Step:
        plan = self.planner.step(step)
        rows = []
        for ranks in plan.rows:
            row = pack_row(self.dataset, ranks[self.rank], self.multiple)
            arrays = (row.input_ids, row.positions, row.cu_seqlens, row.target_index, row.labels)
            ids, positions, cu_seqlens, index, labels = (self._to_device(array) for array in arrays)
            rows.append(Row(ids, positions, cu_seqlens, row.max_seqlen, index, labels))
        return Step(plan, rows)

    def _to_device(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            # From pageable memory the copy would wait for the device, which holds up the step in flight.
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor
