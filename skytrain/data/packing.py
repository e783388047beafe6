"""Packing one optimizer step: which rank runs which documents, in which micro-batch, so that no rank waits long.

The algorithm is told at the top of csrc/pack.cpp. `pack_step` runs it there; `pack_step_reference` is the same in
numpy, two thousand times slower, and is what the tests hold the C++ against: the slots are equal, not close.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np

from skytrain.errors import UserError

# The same three as in csrc/pack.cpp.
EFFORT = 4
PAIRS_UP_TO = 6
CLOSE_ENOUGH = 11

UNLIMITED = 2**62
# Integer cost of the most expensive row: with rows of up to 2^31 tokens, one token more still costs more.
FULL_ROW = 2**32


@dataclass(frozen=True)
class CostModel:
    """Time of forward and backward on one rank, in any unit (FLOPs will do): only ratios matter.

    A document of L tokens costs `linear * L + quadratic * L**2`; a micro-batch costs `overhead` besides, whatever is
    in it (launches, the gathering of weights). The packer takes the fewest micro-batches and does not weigh the
    overhead: at 2% of a full row, weighing it against a better balance in one micro-batch more won under 0.01%.
    """

    linear: float
    quadratic: float
    overhead: float = 0.0

    def __post_init__(self) -> None:
        if min(self.linear, self.quadratic, self.overhead) < 0 or self.linear + self.quadratic <= 0:
            raise ValueError(f"a cost must be 0 or more, and not all of a document's 0: {self}")

    def __call__(self, lengths: np.ndarray | int) -> np.ndarray:
        """Cost of documents of these lengths, float64."""
        tokens = np.asarray(lengths, dtype=np.float64)
        return self.linear * tokens + self.quadratic * (tokens * tokens)

    def integers(self, lengths: np.ndarray, max_tokens: int) -> np.ndarray:
        """int64 costs in units of 2^-32 of a full row's: sums are exact, so that C++ and numpy break ties alike."""
        return np.rint(self(lengths) * (FULL_ROW / float(self(max_tokens)))).astype(np.int64)


def pack_step(lengths: np.ndarray, costs: np.ndarray, ranks: int, max_tokens: int) -> np.ndarray:
    """Slot of each document of one optimizer step: `micro_batch * ranks + rank`, int64 [n].

    lengths: int64 [n], n >= 1, tokens, each in 1..max_tokens; costs: int64 [n], from `CostModel.integers`.
    The documents of a slot are one row of at most `max_tokens` tokens. Micro-batches come heaviest first, so that
    memory peaks in the first one; where documents are few, the last ranks of the last micro-batch have none.
    Raises ValueError or TypeError where the arguments break these rules.
    """
    slots = np.empty(len(lengths), np.int64)
    _pack().pack_step(lengths, costs, ranks, max_tokens, slots)
    return slots


def _pack() -> ModuleType:
    try:
        from skytrain import _pack
    except ImportError as error:
        raise UserError(
            f"skytrain._pack, the packer in C++, cannot be imported ({error}): "
            "install skytrain again, or run `python setup.py build_ext --inplace` in its source folder"
        ) from None
    return _pack


def step_time(lengths: np.ndarray, slots: np.ndarray, ranks: int, cost: CostModel) -> float:
    """Time of a packed step: each micro-batch takes what its slowest rank's documents cost, plus the overhead."""
    micro_batches = int(slots.max()) // ranks + 1
    rows = np.bincount(slots, weights=cost(lengths), minlength=micro_batches * ranks).reshape(micro_batches, ranks)
    return float(rows.max(axis=1).sum() + micro_batches * cost.overhead)


def pack_step_reference(lengths: np.ndarray, costs: np.ndarray, ranks: int, max_tokens: int) -> np.ndarray:
    """What `pack_step` returns, in numpy. The steps, and their order, are those of csrc/pack.cpp."""
    order = np.argsort(-lengths, kind="stable")
    length, weight = lengths[order], costs[order]
    micro_batches = -(-int(length.sum()) // (ranks * max_tokens))
    while (row_of := _fill(weight, length, micro_batches, ranks, max_tokens)) is None:
        micro_batches += 1
    ideal = int(weight.sum()) // ranks
    balance = _Balance(weight, length, row_of, micro_batches, ranks, max_tokens)
    balance.search(ideal + (ideal >> CLOSE_ENOUGH))
    slots = np.empty_like(lengths)
    slots[order] = balance.row_of()
    return slots


def _fill(weight: np.ndarray, length: np.ndarray, micro_batches: int, ranks: int, limit: int) -> np.ndarray | None:
    rows = micro_batches * ranks
    dealer = _Dealer(weight, length, rows, limit)
    dealer.fill_heavy_groups(ranks)
    row_of = dealer.deal()
    if row_of is None:
        tokens = _Balance(length, length, _Dealer(length, length, rows, UNLIMITED).deal(), 1, rows, UNLIMITED)
        row_of = tokens.row_of() if tokens.search(limit) <= limit else None
    return row_of


class _Dealer:
    def __init__(self, weight: np.ndarray, length: np.ndarray, rows: int, limit: int) -> None:
        self.weight, self.length, self.limit = weight, length, limit
        self.row_of = np.full(len(weight), -1)
        self.row_weight, self.row_length = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        self.first_row = 0

    def fill_heavy_groups(self, ranks: int) -> None:
        rows = len(self.row_weight)
        while self.first_row + ranks < rows and (free := np.flatnonzero(self.row_of < 0)).size:
            level = self.weight[free[0]]
            if level <= self.weight[free].sum() // (rows - self.first_row):
                return
            end = self.first_row + ranks
            for document, row in zip(free, range(self.first_row, end)):
                self._put(document, row)
            for row in range(self.first_row, end):
                for document in np.flatnonzero(self.row_of < 0):
                    lighter = self.row_weight[row] + self.weight[document] <= level
                    if lighter and self.row_length[row] + self.length[document] <= self.limit:
                        self._put(document, row)
            self.first_row = end

    def deal(self) -> np.ndarray | None:
        for document in np.flatnonzero(self.row_of < 0):
            room = self.row_length + self.length[document] <= self.limit
            room[: self.first_row] = False
            if not room.any():
                return None
            self._put(document, np.argmin(np.where(room, self.row_weight, UNLIMITED)))
        return self.row_of

    def _put(self, document: int, row: int) -> None:
        self.row_of[document] = row
        self.row_weight[row] += self.weight[document]
        self.row_length[row] += self.length[document]


class _Balance:
    def __init__(self, weight, length, row_of, groups: int, group_size: int, limit: int) -> None:
        self.weight, self.length, self.limit, self.group_size = weight, length, limit, group_size
        rows = groups * group_size
        self.effort = EFFORT * len(weight) * rows
        self.documents = [list(np.flatnonzero(row_of == row)[::-1]) for row in range(rows)]
        self.row_weight = np.array([weight[documents].sum() for documents in self.documents])
        self.row_length = np.array([length[documents].sum() for documents in self.documents])
        self.parts = [self._list_parts(documents) for documents in self.documents]

    def row_of(self) -> np.ndarray:
        result = np.empty(len(self.weight), np.int64)
        for number, row in enumerate(self.order):
            result[self.documents[row]] = number
        return result

    def _group(self) -> int:
        self.order = np.argsort(-self.row_weight, kind="stable")
        self.group = np.empty(len(self.order), np.int64)
        self.group[self.order] = np.arange(len(self.order)) // self.group_size
        self.levels = self.row_weight[self.order[:: self.group_size]]
        return int(self.levels.sum())

    def search(self, goal: int) -> int:
        groups = len(self.row_weight) // self.group_size
        total = self._group()
        while True:
            before, group, stuck = total, groups - 1, 0
            while stuck < groups and self.levels.sum() > goal and self.effort > 0:
                if self._lower(group):
                    stuck = 0
                else:
                    stuck, group = stuck + 1, (group - 1) % groups
            total = self._group()
            if total >= before or total <= goal or self.effort <= 0:
                return total

    def _list_parts(self, documents: list[int]) -> list[tuple[int, ...]]:
        parts = [(), *((i,) for i in documents)]
        if len(documents) <= PAIRS_UP_TO:
            parts += [(i, j) for k, i in enumerate(documents) for j in documents[k + 1 :]]
        return sorted(parts, key=lambda part: self.weight[list(part)].sum())

    def _lower(self, group: int) -> bool:
        top = int(np.argmax((self.group == group) & (self.row_weight == self.levels[group])))
        row, give, take = self._best_exchange(top)
        if row < 0:
            return False
        # In the order of the C++: what is given goes to the end of the other's list, and then what is taken.
        a, b = self.documents[top], self.documents[row]
        self.documents[top] = [i for i in a if i not in give] + list(take)
        self.documents[row] = [i for i in [*b, *give] if i not in take]
        for changed in (top, row):
            self.parts[changed] = self._list_parts(self.documents[changed])
            self.row_weight[changed] = self.weight[self.documents[changed]].sum()
            self.row_length[changed] = self.length[self.documents[changed]].sum()
        self.levels[group] = self.row_weight[self.group == group].max()
        return True

    def _best_exchange(self, top: int) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
        best, found = 0, (-1, (), ())
        for row in range(len(self.row_weight)):
            slack = int(self.levels[self.group[row]] - self.row_weight[row])
            if row == top or slack // 2 <= best:
                continue
            gives, takes = self.parts[top], self.parts[row]
            self.effort -= len(gives) + len(takes)
            moved = self._sums(self.weight, gives)[:, None] - self._sums(self.weight, takes)
            tokens = self._sums(self.length, gives)[:, None] - self._sums(self.length, takes)
            margin = np.minimum(moved, slack - moved)
            fits = (self.row_length[row] + tokens <= self.limit) & (self.row_length[top] - tokens <= self.limit)
            margin[~fits] = 0
            if margin.max() > best:
                give, take = np.unravel_index(np.argmax(margin), margin.shape)
                best, found = int(margin[give, take]), (row, gives[give], takes[take])
        return found

    @staticmethod
    def _sums(values: np.ndarray, parts: list[tuple[int, ...]]) -> np.ndarray:
        return np.array([values[list(part)].sum() for part in parts])
