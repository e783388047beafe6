"""The hardware table: what the makers say a device can do."""

from __future__ import annotations

import tomllib
from pathlib import Path


def peak_flops(device_name: str) -> float | None:
    """Peak dense bf16 FLOP/s of a device by the name it gives itself; none for one the table does not know."""
    table = tomllib.loads(Path(__file__).with_name("hardware.toml").read_text(encoding="utf-8"))
    for row in table["device"]:
        if row["name"].lower() in device_name.lower():
            return row["bf16_tflops"] * 1e12
    return None
