"""How much of the ideal time of a step the plan keeps, against other ways to pack; and how long planning takes.

    python bench/packing.py

17,000 documents, 8 ranks, 96 documents a step, rows of at most 16,384 tokens. A document of L tokens costs
6 P L + 6 layers hidden L^2 (P = 32.0e9, 64 layers, hidden 5,120); every micro-batch costs 2% of a full row besides,
and takes as long as its slowest rank. Kept is the time that a perfect split over the ranks would take, as a part of
the time that the packing takes, in two readings:

    kept      the overhead is time, and no work: 100% cannot be reached
    balance   the overhead is counted as work too: only waiting is lost (and one micro-batch more is not seen)

Two sets of lengths: in `capped` the lognormal is scaled so that its mean is 4,500 after the clip to 200..16,384; in
`rescaled` a lognormal of median 4,500 is clipped, and then scaled to a mean of 4,500, so that the longest has 13,520.
`bound` is what no packing into the fewest micro-batches can pass: see `lower_bound`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import record

from skytrain.data.packing import CostModel, pack_step, pack_step_reference, step_time
from skytrain.data.plan import Planner

DOCUMENTS, RANKS, MAX_TOKENS = 17_000, 8, 16_384
STEP_DOCUMENTS = 96
LINEAR, QUADRATIC = 6 * 32.0e9, 6.0 * 64 * 5120
COST = CostModel(LINEAR, QUADRATIC, 0.02 * (LINEAR * MAX_TOKENS + QUADRATIC * MAX_TOKENS**2))


def draw_lengths(kind: str, n: int = DOCUMENTS) -> np.ndarray:
    shape = np.random.default_rng(0).lognormal(0, 0.65, n)
    if kind == "rescaled":
        clipped = np.clip(shape * 4500, 200, MAX_TOKENS)
        return np.rint(clipped * (4500 / clipped.mean())).astype(np.int64)
    scale = 4500.0
    for _ in range(100):
        lengths = np.clip(np.rint(shape * scale), 200, MAX_TOKENS).astype(np.int64)
        scale *= 4500 / lengths.mean()
    return lengths


def sequential(lengths: np.ndarray) -> np.ndarray:
    """Documents in order; a row ends where the next document does not fit."""
    rows, row, used = [], 0, 0
    for length in lengths:
        if used + length > MAX_TOKENS:
            row, used = row + 1, 0
        rows.append(row)
        used += length
    return np.array(rows)


def best_fit_decreasing(lengths: np.ndarray) -> np.ndarray:
    """Longest first, each into the row with the least room that takes it, else into a new row; as TRL's `bfd` packs."""
    rows = np.empty(len(lengths), np.int64)
    room = np.full(len(lengths), MAX_TOKENS)
    for document in np.argsort(-lengths, kind="stable"):
        # Rows not yet opened have the most room, so the first of them is taken only where no open row will do.
        rows[document] = np.argmin(np.where(room >= lengths[document], room, MAX_TOKENS + 1))
        room[rows[document]] -= lengths[document]
    return rows


def longest_first(lengths: np.ndarray) -> np.ndarray:
    """Longest first, each to the row that costs least so far; rows sorted by cost are cut into micro-batches."""
    costs = COST(lengths)
    micro_batches = fewest(lengths)
    while True:
        rows = np.full(len(lengths), -1)
        cost, room = np.zeros(micro_batches * RANKS), np.full(micro_batches * RANKS, MAX_TOKENS)
        for document in np.argsort(-lengths, kind="stable"):
            fits = room >= lengths[document]
            if not fits.any():
                break
            row = rows[document] = np.argmin(np.where(fits, cost, np.inf))
            cost[row] += costs[document]
            room[row] -= lengths[document]
        else:
            return np.argsort(np.argsort(-cost, kind="stable"))[rows]
        micro_batches += 1


def planned(lengths: np.ndarray) -> np.ndarray:
    return pack_step(lengths, COST.integers(lengths, MAX_TOKENS), RANKS, MAX_TOKENS)


def fewest(lengths: np.ndarray) -> int:
    return -(-int(lengths.sum()) // (RANKS * MAX_TOKENS))


def lower_bound(lengths: np.ndarray) -> float:
    """Least time of a step in the fewest micro-batches its tokens need.

    Some micro-batch takes as long as the longest document, or longer. It holds at most ranks x 16,384 tokens, so its
    rows together cost at most what the longest documents of so many tokens cost; the others share the rest.
    """
    descending = np.sort(lengths)[::-1]
    total = float(COST(lengths).sum())
    before = np.cumsum(descending) - descending
    longest = descending[before < RANKS * MAX_TOKENS].astype(np.float64)
    densest = LINEAR * RANKS * MAX_TOKENS + QUADRATIC * float(np.square(longest).sum())
    levels = max(total, RANKS * float(COST(descending[0])) + total - min(total, densest)) / RANKS
    return levels + fewest(lengths) * COST.overhead


def evaluate(steps: list[np.ndarray], pack: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
    """Both readings, in percent, and the micro-batches: all of them, and the most above the fewest in any step."""
    ideal = work = spent = 0.0
    micro_batches, more = 0, []
    for lengths in steps:
        slots = pack(lengths)
        assert np.bincount(slots, weights=lengths).max() <= MAX_TOKENS
        count = int(slots.max()) // RANKS + 1
        ideal += float(COST(lengths).sum()) / RANKS
        work += float(COST(lengths).sum()) / RANKS + count * COST.overhead
        spent += step_time(lengths, slots, RANKS, COST)
        micro_batches += count
        more.append(count - fewest(lengths))
    values = {"kept": 100 * ideal / spent, "balance": 100 * work / spent, "micro_batches": micro_batches}
    return values | {"most_extra_micro_batches": max(more), "steps_with_extra": sum(extra > 0 for extra in more)}


def evaluate_bound(steps: list[np.ndarray]) -> dict[str, float]:
    ideal = sum(float(COST(lengths).sum()) for lengths in steps) / RANKS
    count = sum(map(fewest, steps))
    spent = sum(map(lower_bound, steps))
    values = {"kept": 100 * ideal / spent, "balance": 100 * (ideal + count * COST.overhead) / spent}
    return values | {"micro_batches": count, "most_extra_micro_batches": 0, "steps_with_extra": 0}


def shuffled_rows(lengths: np.ndarray) -> np.ndarray:
    """Best fit over the whole set, the full rows then shuffled, as a trainer does that packs beforehand."""
    rows = best_fit_decreasing(lengths)
    return np.random.default_rng(0).permutation(rows.max() + 1)[rows]


def planning(n: int = 1_000_000) -> Iterator[dict[str, object]]:
    """Seconds to plan an epoch of n documents, three times: wall-clock time, and time on the one core used."""
    lengths = draw_lengths("capped", n)
    for _ in range(3):
        wall, cpu = time.perf_counter(), time.process_time()
        planner = Planner(
            lengths, lengths // 2, ranks=RANKS, max_tokens=MAX_TOKENS, documents=STEP_DOCUMENTS, cost=COST
        )
        for step in range(planner.total_steps):
            planner.step(step)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        for metric, value in (("wall", wall), ("cpu", cpu)):
            yield row("capped", "planning 1M documents", metric, value, "s")


def row(lengths: str, method: str, metric: str, value: float, unit: str) -> dict[str, object]:
    return {"lengths": lengths, "method": method, "metric": metric, "value": f"{value:.6g}", "unit": unit}


UNITS = {"kept": "%", "balance": "%"}
METHODS = {
    "sequential": sequential,
    "best-fit decreasing, each step": best_fit_decreasing,
    "longest first": longest_first,
    "skytrain": planned,
}


def main() -> None:
    rows = []
    for kind in ("capped", "rescaled"):
        lengths = draw_lengths(kind)
        steps = [lengths[start : start + STEP_DOCUMENTS] for start in range(0, DOCUMENTS, STEP_DOCUMENTS)]
        for step in steps[:10]:
            costs = COST.integers(step, MAX_TOKENS)
            assert np.array_equal(planned(step), pack_step_reference(step, costs, RANKS, MAX_TOKENS))
        table = {"best-fit decreasing, whole set": evaluate([lengths], shuffled_rows)}
        table |= {name: evaluate(steps, pack) for name, pack in METHODS.items()}
        table["bound"] = evaluate_bound(steps)
        print(f"\n{kind}: mean {lengths.mean():.0f}, longest {lengths.max()}, {len(steps)} steps")
        print(f"{'':32}{'kept':>8}{'balance':>9}{'micro-batches':>15}{'most extra':>12}{'steps with':>12}")
        for name, values in table.items():
            kept, balance, count, most, steps_with = values.values()
            print(f"{name:32}{kept:7.2f}%{balance:8.2f}%{count:15}{most:12}{steps_with:12}")
            rows += [row(kind, name, metric, value, UNITS.get(metric, "")) for metric, value in values.items()]
    times = list(planning())
    for metric in ("wall", "cpu"):
        values = sorted(float(str(time["value"])) for time in times if time["metric"] == metric)
        print(f"planning 1M documents, {metric}: {values[1]:.2f} s (from {values[0]:.2f} to {values[2]:.2f})")
    print(record.append("packing", rows + times))


if __name__ == "__main__":
    main()
