"""What types cannot say of the settings: ranges, and which of them go together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skytrain.config import Activations, Config

FLOAT8_TOKENS = 16
"""Float8 products need their inner dimensions in multiples of it, and a weight's gradient is a product over tokens."""
OPERATIONS = ("attention", "qkv", "o_proj", "gate", "up")
"""What can be kept of a decoder layer besides its input, in the order it is made. attention: output and logsumexp;
qkv: the queries, keys and values that attention reads; o_proj, gate, up: the outputs of these projections."""

# Settings from 1 up, and the most of each: beyond it they are a slip of the hand, and would overflow or never end.
COUNTS = {
    **dict.fromkeys(("batch.documents", "batch.tokens", "batch.max_tokens"), 2**31 - 1),
    **dict.fromkeys(("train.max_steps", "train.max_bad_steps", "train.validate_every"), 2**31 - 1),
    **dict.fromkeys(("checkpoint.every", "checkpoint.keep", "export.every", "log.every"), 2**31 - 1),
    "train.epochs": 10_000,
    "train.threads": 1024,
    **dict.fromkeys(("train.timeout_seconds", "train.stall_seconds"), 10**7),
    "kernels.head_chunk_mib": 2**20,
    "parallel.nodes": 2**20,
    "plan.gpus": 2**20,
    **dict.fromkeys(("plan.documents", "plan.mean_tokens"), 2**31 - 1),
}
PATHS = ("run.dir", "model.path", "data.path", "data.validation", "export.default_system")


def broken(c: Config) -> Iterator[tuple[str, Any, str]]:
    """(key, its value, what to do) of each rule that is not kept."""
    return ((key, _value(c, key), advice) for key, good, advice in _checks(c) if not good)


def _value(c: Config, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(c, section), name)


def _checks(c: Config) -> list[tuple[str, bool, str]]:
    """(key, whether it is right, what to do): the rules that types cannot say."""

    def positive(value: float | None) -> bool:
        return value is None or (value > 0 and math.isfinite(value))

    def ratio(value: float | None) -> bool:
        return value is None or 0 <= value <= 1

    def value(key: str) -> Any:
        return _value(c, key)

    return [
        *((key, value(key) is None or value(key) >= 1, "must be at least 1") for key in COUNTS),
        *((key, value(key) is None or value(key) <= most, f"must be at most {most}") for key, most in COUNTS.items()),
        *(
            (
                key,
                value(key) is None or _is_path(value(key)),
                "must be a path that can be: not empty, no part over 255 bytes, UTF-8",
            )
            for key in PATHS
        ),
        (
            "batch.documents",
            (c.batch.documents is None) != (c.batch.tokens is None),
            "set exactly one of batch.documents and batch.tokens",
        ),
        (
            "train.spike_factor",
            c.train.spike_factor is None or 1 < c.train.spike_factor < math.inf,
            "must be a number above 1",
        ),
        ("train.stall_seconds", c.train.stall_seconds >= 5, "must be at least 5"),
        ("run.seed", 0 <= c.run.seed < 2**63, "must be from 0 to 2^63 - 1"),
        ("optim.lr", c.optim.lr >= 0 and math.isfinite(c.optim.lr), "must be a finite number, 0 or more"),
        ("optim.betas", all(0 <= beta < 1 for beta in c.optim.betas), "each must be in [0, 1)"),
        ("optim.eps", positive(c.optim.eps), "must be a finite number above 0"),
        ("optim.weight_decay", 0 <= c.optim.weight_decay < math.inf, "must be a finite number, 0 or more"),
        (
            "optim.format",
            c.optim.format in ("auto", "fp32") or c.optim.name == "adamw",
            "is of AdamW's states: SGD has none",
        ),
        (
            "optim.format",
            c.optim.format in ("auto", "fp32", "fp32_8bit") or c.train.dtype == "bfloat16",
            'its weights on a rank are bf16: set train.dtype = "bfloat16"',
        ),
        ("optim.clip", positive(c.optim.clip), 'must be a finite number above 0, or "none"'),
        ("schedule.warmup_ratio", ratio(c.schedule.warmup_ratio), "must be from 0 to 1"),
        ("schedule.warmup_steps", 0 <= (c.schedule.warmup_steps or 0) < 2**31, "must be from 0 to 2^31 - 1"),
        (
            "schedule.warmup_steps",
            c.schedule.warmup_ratio is None or c.schedule.warmup_steps is None,
            "set at most one of schedule.warmup_ratio and schedule.warmup_steps",
        ),
        ("schedule.min_ratio", ratio(c.schedule.min_ratio), "must be from 0 to 1"),
        ("schedule.decay_ratio", ratio(c.schedule.decay_ratio), "must be from 0 to 1"),
        (
            "train.validate_every",
            c.train.validate_every is None or c.data.validation is not None,
            "needs data.validation",
        ),
        (
            "batch.max_tokens",
            c.train.float8 is None or c.batch.max_tokens % FLOAT8_TOKENS == 0,
            f"must be a multiple of {FLOAT8_TOKENS} under train.float8, whose products take so many tokens at once",
        ),
        *_activation_checks(c.activations),
        (
            "parallel.reduce_dtype",
            c.parallel.reduce_dtype in ("float32", c.train.dtype),
            "must be float32, or as train.dtype",
        ),
        ("kernels.logits", c.kernels.logits in ("float32", c.train.dtype), "must be float32, or as train.dtype"),
        ("log.price_per_gpu_hour", positive(c.log.price_per_gpu_hour), "must be a finite number above 0"),
    ]


def _activation_checks(a: Activations) -> list[tuple[str, bool, str]]:
    names = {"activations.keep": (a.keep, OPERATIONS), "activations.offload": (a.offload, ("input", *OPERATIONS))}
    both = ", ".join(sorted(set(a.keep) & set(a.offload)))
    budget = a.budget_gib
    return [
        *(
            (key, set(given) <= set(known), f"names must be of {', '.join(known)}")
            for key, (given, known) in names.items()
        ),
        *((key, len(given) == len(set(given)), "names must not be repeated") for key, (given, _) in names.items()),
        *(
            (key, a.checkpoint == "selective" or not given, 'needs activations.checkpoint = "selective"')
            for key, (given, _) in names.items()
        ),
        ("activations.offload", not both, f"{both} cannot be in activations.keep as well"),
        (
            "activations.budget_gib",
            budget is None or a.checkpoint == "selective",
            'needs activations.checkpoint = "selective"',
        ),
        (
            "activations.budget_gib",
            budget in (None, "auto") or 0 < budget < 2**20,
            'must be a number of GiB above 0, or "auto"',
        ),
        (
            "activations.budget_gib",
            budget is None or not (a.keep or a.offload),
            "chooses what is kept: take out activations.keep and activations.offload",
        ),
    ]


def _is_path(text: str) -> bool:
    """Whether a POSIX file system could hold it: an OSError or a ValueError from deep inside names no setting."""
    try:
        raw = text.encode()
    except UnicodeEncodeError:  # an argument that is not UTF-8, which the recipe in the run folder could not hold
        return False
    return 0 < len(raw) < 4096 and b"\0" not in raw and all(len(part) < 256 for part in raw.split(b"/"))
