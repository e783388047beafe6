"""Production's Triton launches without a GPU: recorded on meta tensors, compiled in a process of their own.

Within `recorded()` backend.launch is a recorder, and custom ops of ours run their launchers on meta tensors too (see
bench/launches.py), so calling the public functions is all it takes. `compile_launches` hands the recorded launches, as
JSON, to one process without TRITON_INTERPRET (aot_compile.py), which compiles them with the specialisation that the
JIT would choose. What is asserted about the result is in `faults`.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from launches import watched
from torch import Tensor

REGISTERS, SHARED_BYTES = 65_536, 227 * 1024  # of one multiprocessor of sm_90
# Of the bytes in a kernel's load (and store) instructions, the part that must be in 128-bit ones. The rest is one
# number a row: its label, its coefficient, its reciprocal root mean square.
WIDE_SHARE = 0.8
TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
}


@dataclass(frozen=True)
class Launch:
    """One kernel with one specialisation. `description` is JSON, so that equal launches are equal strings."""

    description: str

    @property
    def name(self) -> str:
        return json.loads(self.description)["kernel"]

    def __str__(self) -> str:
        fields = json.loads(self.description)
        types = ", ".join(f"{name}: {kind}" for name, kind in fields["signature"].items() if kind != "constexpr")
        constants = ", ".join(f"{name}={value}" for name, value in fields["constants"].items())
        return f"{fields['kernel']}({types}; {constants}; {fields['num_warps']} warps, {fields['num_stages']} stages)"


@dataclass(frozen=True)
class Compiled:
    ptx: str = ""
    shared: int = 0
    """Bytes of shared memory a program."""
    log: str = ""
    """What `ptxas -v` says, for sm_90a; empty for other targets."""
    error: str = ""
    """In Triton's words; empty where it compiles."""


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """The different launches made within, in their order. Nothing is computed."""
    launches: dict[Launch, None] = {}
    result: list[Launch] = []

    def record(kernel, grid, *arguments, num_warps=4, num_stages=2, **constants):
        if 0 in grid:
            return
        launch = describe(kernel, arguments, num_warps, num_stages, constants)
        if launch not in launches:
            launches[launch] = None
            result.append(launch)

    with watched(record):
        yield result


def describe(kernel, arguments: tuple, num_warps: int, num_stages: int, constants: dict) -> Launch:
    """A launch as the JIT specialises it: an integer that is 1 is a constant, what 16 divides is known so."""
    parameters = inspect.signature(kernel.fn).parameters
    values = dict(zip(parameters, arguments, strict=False)) | constants
    missing = [name for name, p in parameters.items() if name not in values and p.default is p.empty]
    unknown = set(values) - set(parameters)
    if missing or unknown or len(arguments) + len(constants) != len(values):
        raise TypeError(f"{kernel.fn.__name__}: missing {missing}, unknown {unknown}, or given twice")
    signature, known, divisible = {}, {}, []
    for index, (name, parameter) in enumerate(parameters.items()):
        value = values.get(name, parameter.default)
        signature[name] = kind = "constexpr" if "constexpr" in str(parameter.annotation) else argument_type(value)
        if kind == "constexpr":
            known[name] = value
        elif isinstance(value, Tensor):
            if value.storage_offset() * value.element_size() % 16 == 0:
                divisible.append(index)
        elif kind in ("i32", "i64", "u64") and value % 16 == 0:
            divisible.append(index)
    fields = {"module": kernel.fn.__module__, "kernel": kernel.fn.__qualname__, "signature": signature}
    fields |= {"constants": known, "divisible": divisible, "num_warps": num_warps, "num_stages": num_stages}
    return Launch(json.dumps(fields))


def argument_type(value: object) -> str:
    """Triton's name of an argument's type; "constexpr" for what the JIT makes a constant."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value == 1):
        return "constexpr"
    if isinstance(value, Tensor):
        return "*" + TYPES[value.dtype]
    if isinstance(value, bool):
        return "u1"
    if isinstance(value, float):
        return "fp32"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64" if value < 2**63 else "u64"
    raise TypeError(f"a launch takes tensors and numbers, not {type(value).__name__}")


def compile_launches(wanted: Iterable[tuple[Launch, int]], folder: Path) -> dict[tuple[Launch, int], Compiled]:
    """Compiles each (launch, 90 for sm_90), all in one process."""
    wanted = list(wanted)
    question, answer = folder / "launches.json", folder / "compiled.json"
    question.write_text(json.dumps([json.loads(launch.description) | {"target": target} for launch, target in wanted]))
    here = Path(__file__).parent
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(here), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-P", str(here / "aot_compile.py"), str(question), str(answer)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return {key: Compiled(**result) for key, result in zip(wanted, json.loads(answer.read_text()))}


def faults(launch: Launch, compiled: Compiled, least: dict[str, int] | None = None) -> list[str]:
    """What is wrong with a kernel compiled for sm_90, in words; nothing where all is well.

    least: for a kernel with slow paths too, the bytes a thread must load and store ("ld", "st") in 128-bit accesses.
    """
    if compiled.error:
        return [f"does not compile: {compiled.error}"]
    found = []
    if spilled := spill_bytes(compiled.log):
        found.append(f"{spilled} bytes spilled")
    if ".f64" in compiled.ptx:
        found.append("computes in fp64")
    warps = json.loads(launch.description)["num_warps"]
    if registers(compiled.log) > REGISTERS // (32 * warps):
        found.append(f"{registers(compiled.log)} registers a thread with {warps} warps")
    if compiled.shared > SHARED_BYTES:
        found.append(f"{compiled.shared} bytes of shared memory")
    for what in ("ld", "st"):
        widths = access_bits(compiled.ptx, what)
        wide = sum(width for width in widths if width >= 128)
        share = wide / max(1, sum(widths))
        if least is not None:
            if wide < 8 * least[what]:
                found.append(f"{wide // 8} of {least[what]} bytes of {what}.global are in 128-bit accesses")
        elif widths and share < WIDE_SHARE:
            found.append(f"{100 * share:.0f}% of what {what}.global moves is in 128-bit accesses")
    if uses_dot(launch) and "wgmma" not in compiled.ptx:
        found.append("tl.dot without HGMMA")
    return found


def spill_bytes(log: str) -> int:
    numbers = re.findall(r"(\d+) bytes spill (?:stores|loads)", log)
    if not numbers:
        raise ValueError(f"ptxas said nothing of spills:\n{log}")
    return sum(map(int, numbers))


def registers(log: str) -> int:
    return int(re.findall(r"Used (\d+) registers", log)[-1])


def access_bits(ptx: str, what: str) -> list[int]:
    """Bits of each access to global memory in the text; what: "ld" (copies to shared memory too) or "st"."""
    found = re.findall(rf"\b{what}\.global((?:\.\w+(?:::\w+)*)*?)(?:\.v(\d))?\.[a-z]+(\d+)\s", ptx)
    widths = [int(count or 1) * int(bits) for _modifiers, count, bits in found]
    if what == "ld":
        copies = re.findall(r"\bcp\.async\.c[ag]\.shared\S*\.global\S* \[[^]]*\], \[[^]]*\], (\w+)", ptx)
        widths += [8 * int(size, 0) for size in copies]
    return widths


def uses_dot(launch: Launch) -> bool:
    fields = json.loads(launch.description)
    kernel = getattr(sys.modules[fields["module"]], fields["kernel"])
    return "tl.dot(" in inspect.getsource(kernel.fn)
