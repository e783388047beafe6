"""How many rows of each source are kept, and which."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from dataclasses import dataclass, field

from skytrain.errors import UserError


@dataclass(frozen=True)
class Limits:
    """shares: of all rows that are kept, by source; quotas: rows, by source; each: rows of every other source."""

    shares: dict[str, float] = field(default_factory=dict)
    quotas: dict[str, int] = field(default_factory=dict)
    each: int | None = None

    def __bool__(self) -> bool:
        return bool(self.shares or self.quotas or self.each is not None)


def allowed(found: Counter[str], limits: Limits) -> dict[str, int]:
    """Rows that may be kept of each source found. Raises `UserError` for shares that leave nothing."""
    counts = {source: min(count, limits.quotas.get(source, limits.each or count)) for source, count in found.items()}
    # Shares are of what is left, and fewer rows of one lower the limit of the others: down to the largest solution.
    kept = dict(counts)
    while True:
        total = sum(kept.values())
        after = {
            source: min(counts[source], int(limits.shares[source] * total + 1e-9)) if source in limits.shares else count
            for source, count in kept.items()
        }
        if after == kept:
            break
        kept = after
    if found and not sum(kept.values()):
        told = ", ".join(f"{source}={share:g}" for source, share in sorted(limits.shares.items()))
        raise UserError(f"--max-share {told}: leaves no rows of {sum(counts.values())}; raise a share or add sources")
    return kept


def rank(seed: int, identity: str) -> bytes:
    """The order in which rows are chosen, lowest first: the same whatever the order of the rows."""
    return hashlib.sha256(f"{seed}:{identity}".encode(errors="surrogatepass")).digest()[:12]


def chosen(ranks: list[tuple[str, bytes]], limits: Limits) -> list[bool]:
    """For each row (its source, its rank), whether it is kept."""
    counts = allowed(Counter(source for source, _ in ranks), limits)
    by_source: dict[str, list[tuple[bytes, int]]] = {source: [] for source in counts}
    for i, (source, place) in enumerate(ranks):
        by_source[source].append((place, i))
    keep = [False] * len(ranks)
    for source, count in counts.items():
        for _, i in heapq.nsmallest(count, by_source[source]):
            keep[i] = True
    return keep
