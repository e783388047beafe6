"""The hardware table: what the makers say a device can do, and the part of it that a step is taken to reach.

The user's own rows come first: `skytrain plan --calibrate` measures a machine and writes one.
"""

from __future__ import annotations

import functools
import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from skytrain.errors import UserError
from skytrain.files import read_regular

if TYPE_CHECKING:
    import torch

GIB = 2**30
GPUS_A_NODE = 8


class Efficiency(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Parts of the peaks that are reached, 0 to 1."""

    matmul: float
    attention: float
    memory: float
    link: float
    network: float
    host_link: float
    host_memory: float
    float8_tensorwise: float = 0.0
    """Of fp8_tflops, by train.float8's recipe; 0: not known."""
    float8_rowwise: float = 0.0
    serving: float = 0.0
    """Of a server's roofline at the rates above (serving.py); 0: not known."""
    source: str


class Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A row of the table, in the units of hardware.toml; the properties are what is reached, in FLOP/s and bytes/s."""

    id: str
    name: str
    bf16_tflops: float
    """Of `dtype`, where that is another one."""
    memory_gib: float
    memory_gbs: float
    link_gbs: float
    network_gbs: float
    host_link_gbs: float
    host_memory_gbs: float
    source: str
    fp8_tflops: float = 0.0
    dtype: str = "bfloat16"
    """What the rates are of: a CPU is measured in float32."""
    efficiency: Efficiency | None = None
    """That of the table's [efficiency] where a row has none of its own."""

    @property
    def memory(self) -> int:
        """Bytes of device memory."""
        return int(self.memory_gib * GIB)

    @property
    def matmul_rate(self) -> float:
        return self.bf16_tflops * 1e12 * self.efficiency.matmul

    def product_rate(self, float8: str | None) -> float:
        """Of a layer's products under train.float8; 0 where that is not known, or the device has none."""
        if float8 is None:
            return self.matmul_rate
        return self.fp8_tflops * 1e12 * getattr(self.efficiency, f"float8_{float8}")

    @property
    def attention_rate(self) -> float:
        return self.bf16_tflops * 1e12 * self.efficiency.attention

    @property
    def memory_rate(self) -> float:
        return self.memory_gbs * 1e9 * self.efficiency.memory

    @property
    def host_link_rate(self) -> float:
        return self.host_link_gbs * 1e9 * self.efficiency.host_link

    @property
    def host_memory_rate(self) -> float:
        return self.host_memory_gbs * 1e9 * self.efficiency.host_memory

    @property
    def offload_rate(self) -> float:
        """Between device and host, one way, while all GPUs of a node do it: each value is written and read there."""
        return min(self.host_link_rate, self.host_memory_rate)

    @property
    def network_rate(self) -> float:
        return self.network_gbs * 1e9 * self.efficiency.network

    def link_rate(self, ranks: int) -> float:
        """Between `ranks` ranks that share the weights: over more than one node the network sets the pace."""
        return self.link_gbs * 1e9 * self.efficiency.link if ranks <= GPUS_A_NODE else self.network_rate


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    device: list[Device]
    efficiency: Efficiency | None = None


def user_file() -> Path:
    """Where --calibrate writes, and where rows are read from besides the table."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "skytrain" / "hardware.toml"


def devices() -> list[Device]:
    """All rows, the user's first. UserError for a user's file that cannot be read."""
    own = user_file()
    return (read(own) if own.exists() else []) + shipped()


def shipped() -> list[Device]:
    """The table's own rows."""
    return _read(Path(__file__).with_name("hardware.toml"), None)


def read(path: Path) -> list[Device]:
    """Rows of a user's file; those without an [efficiency] have the file's, or the table's. UserError as `devices`."""
    return _read(path, shipped()[0].efficiency)


def _read(path: Path, efficiency: Efficiency | None) -> list[Device]:
    try:
        return list(_parse(read_regular(path).decode("utf-8"), efficiency))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; make it readable, or remove it") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {error}; mend the row, or write it again with skytrain plan --calibrate") from None


@functools.lru_cache(8)
def _parse(text: str, efficiency: Efficiency | None) -> tuple[Device, ...]:
    table = msgspec.convert(tomllib.loads(text), _Table)
    common = table.efficiency or efficiency
    return tuple(row if row.efficiency else msgspec.structs.replace(row, efficiency=common) for row in table.device)


def find(device_id: str) -> Device:
    """The row of an id. UserError, with the ids there are, for one that no row has."""
    rows = {row.id: row for row in reversed(devices())}
    if device_id not in rows:
        raise UserError(
            f"gpu {device_id!r}: not in the hardware table; give one of {', '.join(sorted(rows))}, or measure yours "
            "with skytrain plan --calibrate"
        )
    return rows[device_id]


def of_name(device_name: str) -> Device | None:
    """The row of a device by the name it gives itself; none for one the table does not know."""

    def names(row: Device) -> bool:  # as a word: a GH200 is no H200
        return re.search(r"(?<!\w)" + re.escape(row.name), device_name, re.IGNORECASE) is not None

    return next(filter(names, devices()), None)


def peak_flops(device_name: str) -> float | None:
    """Peak dense bf16 FLOP/s of a device by the name it gives itself; none for one the table does not know."""
    row = of_name(device_name)
    return None if row is None else row.bf16_tflops * 1e12


def device_name(device: torch.device, ranks: int) -> str:
    """The name that a GPU gives itself. A CPU is shared by its ranks, so their number belongs to its name."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    model = next((line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")), "unknown")
    return f"CPU {model}, {len(os.sched_getaffinity(0))} cores, {ranks} rank{'s' if ranks > 1 else ''}"


def _cpu_lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
