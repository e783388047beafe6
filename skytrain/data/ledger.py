"""The account of a data stage: every row read is kept or dropped for a named reason, and the tokens add up too."""

from __future__ import annotations

import msgspec

REASONS = (
    "malformed",
    "empty",
    "bad_role",
    "too_long",
    "nothing_to_train",
    "duplicate",
    "contaminated",
    "unfinished",
    "wrong",
)


class Rows(msgspec.Struct, forbid_unknown_fields=True):
    read: int = 0
    kept: int = 0
    dropped: dict[str, int] = {}


class Tokens(msgspec.Struct, forbid_unknown_fields=True):
    """Of the rows that could be rendered. A row that could not be has no tokens and counts as a row only."""

    rendered: int = 0
    trained: int = 0
    context: int = 0
    dropped: dict[str, int] = {}


class Ledger(msgspec.Struct, forbid_unknown_fields=True):
    """rows.read = rows.kept + rows.dropped; tokens.rendered = tokens.trained + tokens.context + tokens.dropped.

    Both sides are counted where they happen, so `problem` finds a row that was lost in between.
    """

    rows: Rows = msgspec.field(default_factory=Rows)
    tokens: Tokens = msgspec.field(default_factory=Tokens)

    def read(self, rows: int = 1, tokens: int = 0) -> None:
        self.rows.read += rows
        self.tokens.rendered += tokens

    def keep(self, trained: int, context: int) -> None:
        self.rows.kept += 1
        self.tokens.trained += trained
        self.tokens.context += context

    def drop(self, reason: str, tokens: int = 0) -> None:
        """`tokens`: those of the rendered row, or 0 where it could not be rendered."""
        if reason not in REASONS:
            raise ValueError(f"{reason!r} is not one of {REASONS}")
        self.rows.dropped[reason] = self.rows.dropped.get(reason, 0) + 1
        if tokens:
            self.tokens.dropped[reason] = self.tokens.dropped.get(reason, 0) + tokens

    def problem(self) -> str | None:
        """What does not add up, or None."""
        rows, tokens = self.rows, self.tokens
        for reason, count in (*rows.dropped.items(), *tokens.dropped.items()):
            if reason not in REASONS or count < 0:
                return f"{count} dropped for {reason!r}"
        dropped = sum(rows.dropped.values())
        if rows.read != rows.kept + dropped:
            return f"rows read {rows.read} != kept {rows.kept} + dropped {dropped}"
        dropped = sum(tokens.dropped.values())
        if tokens.rendered != tokens.trained + tokens.context + dropped:
            return (
                f"tokens rendered {tokens.rendered} != trained {tokens.trained} + context {tokens.context} "
                f"+ dropped {dropped}"
            )
        return None

    def table(self, examples: dict[str, str] | None = None) -> str:
        """A short table for the console. `examples`: a reason -> the first row dropped for it, and why."""
        lines = [f"{'':<18}{'rows':>12}{'tokens':>16}"]

        def line(name: str, rows: int | None, tokens: int | None, note: str = "") -> None:
            cells = ["" if count is None else f"{count:,}" for count in (rows, tokens)]
            lines.append(f"{name:<18}{cells[0]:>12}{cells[1]:>16}  {note}".rstrip())

        line("read", self.rows.read, self.tokens.rendered)
        line("kept", self.rows.kept, self.tokens.trained + self.tokens.context)
        line("  trained", None, self.tokens.trained)
        line("  context", None, self.tokens.context)
        line("dropped", sum(self.rows.dropped.values()), sum(self.tokens.dropped.values()))
        for reason in REASONS:
            if reason in self.rows.dropped:
                note = (examples or {}).get(reason, "")
                line(f"  {reason}", self.rows.dropped[reason], self.tokens.dropped.get(reason, 0), note)
        return "\n".join(lines)
