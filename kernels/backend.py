"""Which back end an operation runs on, and the one place from which Triton kernels are started.

Triton is optional: where it is absent, kernel functions are plain Python that nothing calls. Its interpreter
(TRITON_INTERPRET=1, set before this module is imported) runs the kernels on CPU tensors, for tests.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

BACKENDS = ("auto", "triton", "reference", "liger")
INTERPRETED = triton is not None and triton.knobs.runtime.interpret


def jit(function: Callable[..., Any]) -> Any:
    """triton.jit, or the function itself where Triton is absent."""
    return function if triton is None else triton.jit(function)


def obstacle(name: str, device: torch.device) -> str | None:
    """Why a back end cannot run on a device; None where it can."""
    if name not in BACKENDS:
        return f"unknown; known: {', '.join(BACKENDS)}"
    if name == "liger" and importlib.util.find_spec("liger_kernel") is None:
        return "liger-kernel is not installed"
    if name in ("triton", "liger"):
        if triton is None:
            return "triton is not installed"
        if (device.type == "cpu") != INTERPRETED:
            return "TRITON_INTERPRET is set, which runs on CPU tensors alone" if INTERPRETED else "it needs a GPU"
    return None


def resolve(name: str, device: torch.device) -> str:
    """The back end that `name` stands for: `auto` is Triton on a GPU and the reference on a CPU.

    Raises ValueError, with the reason, for one that cannot run here.
    """
    if name == "auto":
        name = "triton" if device.type == "cuda" else "reference"
    problem = obstacle(name, device)
    if problem is not None:
        raise ValueError(problem)
    return name


def is_traced(name: str) -> bool:
    """Whether torch.compile is looking and the back end is plain PyTorch: then the formula itself is given to it.

    Behind a custom operation the compiler could fuse it with nothing: on a CPU that cost 15% of a training step.
    """
    return name == "reference" and torch.compiler.is_compiling()


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int = 4, num_stages: int = 2, **constants):
    """Starts `kernel` on a grid of programs; an empty grid starts none.

    arguments: tensors and numbers, in the kernel's order; constants: its tl.constexpr parameters, by name.
    Everything goes through here, so that ahead-of-time compilation and the count of bytes see production's launches.
    """
    if 0 not in grid:
        kernel[grid](*arguments, num_warps=num_warps, num_stages=num_stages, **constants)
