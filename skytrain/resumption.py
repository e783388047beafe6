"""Whether a run may go on from a checkpoint: the recipe it was made by against the one at hand, key by key."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from skytrain import config
from skytrain.config import Config, Schedule
from skytrain.errors import UserError
from skytrain.optim import SAME_STATES, learning_rate

# Neither what a step computes nor what comes after it, but for the order in which numbers are added up.
HARMLESS_SECTIONS = {"run", "model", "data", "activations", "attention", "checkpoint", "export", "log", "plan"}
HARMLESS = {
    "batch.max_tokens",
    "kernels.backend",
    "kernels.head_chunk_mib",
    "parallel.nodes",
    "parallel.reshard_after_forward",
    "train.compile",
    "train.deterministic",
    "train.device",
    "train.max_bad_steps",
    "train.spike_factor",
    "train.stall_seconds",
    "train.threads",
    "train.timeout_seconds",
    "train.validate_every",
}
LENGTH = ("train.epochs", "train.max_steps")


def check(
    here: Config, scalars: dict[str, Any], follows: dict[str, object], total: int, found: Path, changes: Collection[str]
) -> list[str]:
    """Lines that name what has changed. UserError where a change would spoil the run and is not named in `changes`.

    scalars: the checkpoint's. follows: what decides the documents of each step (`run.steps_follow_from`), and total:
    the number of steps, both of this run.
    """
    _same_steps(here, scalars, follows, found)
    if scalars["step"] > total:
        raise UserError(
            f"resume from {found}: {scalars['step']} steps are done, and this recipe ends at {total}; "
            "raise train.max_steps or train.epochs, or export that step: skytrain export"
        )
    there, now = scalars["recipe"], config.flat(here)
    changed = {key: (there.get(key), now[key]) for key in now if there.get(key) != now[key]}
    lines, refused = [], []
    for key, (old, new) in changed.items():
        told = f"{key} was {config.toml(old)}, is {config.toml(new)}"
        if key == "optim.format":
            _same_states(old, new, found)
        elif not _is_harmless(key, here, scalars, total):
            if key not in changes:
                refused.append((key, told))
                continue
            told += " (named with --change)"
        lines.append(f"resume: {told}")
    if refused:
        raise UserError(
            f"resume from {found}: {'; '.join(told for _, told in refused)}; set back what is not meant, or name it: "
            + " ".join(f"--change {key}" for key, _ in refused)
        )
    return lines


def _is_harmless(key: str, here: Config, scalars: dict[str, Any], total: int) -> bool:
    if key in LENGTH:
        # Another length is another learning rate, for every schedule that falls towards its end.
        schedule = msgspec.convert(
            {name.partition(".")[2]: v for name, v in scalars["recipe"].items() if name.startswith("schedule.")},
            Schedule,
        )
        old = scalars["total"]
        steps = range(min(old, total))
        return all(learning_rate(s, old, schedule, 1.0) == learning_rate(s, total, here.schedule, 1.0) for s in steps)
    return key in HARMLESS or key.partition(".")[0] in HARMLESS_SECTIONS


def _same_steps(here: Config, scalars: dict[str, Any], follows: dict[str, object], found: Path) -> None:
    """`UserError` unless the checkpoint's run took the same documents in the same order as this one will."""
    for key, now in follows.items():
        there = scalars.get(key)
        if there == now:
            continue
        if key == "data.path":
            what = f"{key} = {here.data.path!r} holds another data set than the run that wrote it used"
        elif key == "model.path":
            what = f"{key} = {here.model.path!r}: its config.json was another in the run that wrote it"
        else:
            what = f"{key} is {now!r}, and was {there!r} in the run that wrote it"
        raise UserError(f"resume from {found}: {what}; set it back, or start a new run in another run.dir")


def _same_states(old: str, new: str, found: Path) -> None:
    if not any({old, new} <= formats for formats in SAME_STATES):
        raise UserError(
            f"resume from {found}: optim.format was {old!r}, and its moments cannot become {new!r}'s exactly; "
            f"set it back, or start a new run in another run.dir"
        )
