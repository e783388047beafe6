"""Bytes that each fused operation moves, over the fewest possible; counted in Triton's interpreter, without a GPU.

    python bench/traffic.py [--small]

A memory-bound kernel takes this ratio times the fewest bytes, over the bandwidth. Counted are the loads and stores of
every program, lanes that are masked off left out, one address once an instruction (the lanes of a load that broadcasts
share it), and what torch operations inside our custom ops read and write. Fewest is each input read once and each
output written once. Caches are ignored: a weight that every program reads anew is counted anew. Of a large grid some
programs are run, evenly spaced along the first axis, and stand for the others.

Exits with status 1 where an operation is over its limit: 1.05 in general; 1.15 for a norm's backward, whose weight
gradient goes through one fp32 partial row for 16 rows or more. A chunk of logits, and a norm's row too wide to be kept
on chip, are counted as two reads and one write. `--small` is for tests, and writes no results.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from unittest import mock

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import record
import torch
from cases import (
    ADAMW_BYTES,
    MODELS,
    OPERATIONS,
    Make,
    Operation,
    Shape,
    adamw,
    adamw_fewest_bytes,
    adamw_step,
    backward,
    with_gradients,
)
from launches import watched
from torch import Tensor

from skytrain.kernels import backend
from skytrain.kernels.cross_entropy import cross_entropy_

LIMIT, NORM_BACKWARD_LIMIT = 1.05, 1.15
PROGRAMS = 32
# What only returns memory or another view of it.
SMALL = {"hidden": 512, "inner": 1024, "q": 4, "kv": 2}
FREE = ("empty", "detach", "alias", "_unsafe_view", "new_empty", "empty_like", "zeros_like")


@dataclass
class Count:
    """Bytes by kernel; torch's operations under "torch"."""

    loaded: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    stored: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def total(self) -> float:
        return sum(self.loaded.values()) + sum(self.stored.values())


@contextlib.contextmanager
def counted() -> Iterator[Count]:
    """Counts what runs within."""
    from triton.runtime.interpreter import InterpreterBuilder

    count = Count()
    running: list[tuple[str, float]] = []  # kernel, and for how many programs each that runs stands
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    start = backend.launch

    def counting_load(self, pointers, mask, *rest):
        kernel, factor = running[-1]
        count.loaded[kernel] += factor * _bytes(pointers, mask)
        return load(self, pointers, mask, *rest)

    def counting_store(self, pointers, value, mask, *rest):
        kernel, factor = running[-1]
        count.stored[kernel] += factor * _bytes(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def atomic(*_):
        raise NotImplementedError("atomics are not counted")

    def launch(kernel, grid, *arguments, **constants):
        if 0 in grid:
            return
        full = (*grid, 1, 1)[:3]
        run = min(full[0], max(1, PROGRAMS // math.prod(full[1:])))

        def set_dim(self, *_):
            self.grid_dim = full

        def set_index(self, first, *others):
            self.grid_idx = (first * full[0] // run, *others)

        running.append((kernel.fn.__name__, full[0] / run))
        with (
            mock.patch.object(InterpreterBuilder, "set_grid_dim", set_dim),
            mock.patch.object(InterpreterBuilder, "set_grid_idx", set_index),
        ):
            start(kernel, (run, *full[1:]), *arguments, **constants)
        running.pop()

    def torch_operation(function, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        name = function._schema.name.partition("::")[2]
        # The interpreter copies tensors with torch: not the kernel's doing.
        if not running and not function.is_view and name not in FREE and not name.startswith("sym_"):
            written = {id(x) for x in outputs}
            count.loaded["torch"] += sum(x.nbytes for x in inputs if id(x) not in written)
            count.stored["torch"] += sum(x.nbytes for x in outputs)

    with (
        mock.patch.object(InterpreterBuilder, "create_masked_load", counting_load),
        mock.patch.object(InterpreterBuilder, "create_masked_store", counting_store),
        mock.patch.object(InterpreterBuilder, "create_atomic_rmw", atomic),
        mock.patch.object(InterpreterBuilder, "create_atomic_cas", atomic),
        watched(launch, torch_operation),
        np.errstate(all="ignore"),  # what programs that were left out would have written is not there
    ):
        yield count


def _bytes(pointers, mask) -> int:
    places = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)]
    return np.unique(places).size * max(1, pointers.get_element_ty().primitive_bitwidth // 8)


@dataclass(frozen=True)
class Result:
    name: str
    fewest: int
    count: Count
    limit: float

    @property
    def ratio(self) -> float:
        return self.count.total / self.fewest


def measure(operation: Operation, shape: Shape, dtype: torch.dtype = torch.float16) -> Iterator[Result]:
    """Forward and backward of one operation. fp16 stands for bf16, which has its size and is slower to interpret."""
    make = Make(torch.device("cpu"), dtype, torch.Generator().manual_seed(0))
    inputs = with_gradients(operation, operation.inputs(make, shape))
    with counted() as forward:
        outputs = operation.ours(inputs, "triton")
    upstream = tuple(torch.randn_like(output) for output in outputs)
    with counted() as back:
        backward(operation, inputs, outputs, upstream)
    size = " x ".join(map(str, next(iter(inputs.values())).shape))
    limit = NORM_BACKWARD_LIMIT if "norm" in operation.name else LIMIT
    yield Result(f"{operation.name} forward, {size}", operation.forward_bytes(inputs, outputs), forward, LIMIT)
    yield Result(f"{operation.name} backward, {size}", operation.backward_bytes(inputs, outputs), back, limit)


def measure_adamw(format: str, shapes: list[tuple[int, ...]]) -> Result:
    make = Make(torch.device("cpu"), torch.float32, torch.Generator().manual_seed(0))
    optimizer = adamw(format, [make.normal(*shape) for shape in shapes], "triton")
    gradients = [torch.zeros_like(parameter) for parameter in optimizer.parameters]
    with counted() as count:
        adamw_step(optimizer, gradients)
    return Result(f"adamw {format}", adamw_fewest_bytes(optimizer, gradients), count, LIMIT)


def measure_cross_entropy(rows: int, vocabulary: int, logits: torch.dtype, gradient: torch.dtype) -> Result:
    """The pass over a chunk of logits between the head's products; a row is read twice, and its gradient written."""
    z, labels = torch.zeros(rows, vocabulary, dtype=logits), torch.zeros(rows, dtype=torch.int64)
    with counted() as count:
        cross_entropy_(z, labels, torch.ones(rows), gradient_dtype=gradient, statistics=False, backend="triton")
    fewest = rows * vocabulary * (2 * logits.itemsize + gradient.itemsize)
    types = " to ".join(str(dtype).removeprefix("torch.") for dtype in (logits, gradient))
    return Result(f"cross_entropy, {rows} x {vocabulary}, {types}", fewest, count, LIMIT)


def results(small: bool) -> Iterator[Result]:
    """Norms have the rows of production, since what a program does depends on their number."""
    for model in list(MODELS.values())[: 1 if small else None]:
        for operation in OPERATIONS.values():
            if operation.name != "linear_cross_entropy":
                shape = model if "norm" in operation.name else model | {"rows": 1024}
                yield from measure(operation, shape | SMALL if small else shape)
    for logits, gradient in ((torch.float32, torch.float16), (torch.float32, torch.float32)):
        yield measure_cross_entropy(4, 8192 if small else MODELS["32B"]["vocabulary"], logits, gradient)
    side = 1024 if small else 5120
    for format in ADAMW_BYTES:
        yield measure_adamw(format, [(side, side), (side,), (side // 4, side)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="small shapes, no results written")
    small = parser.parse_args().small
    over, rows = 0, []
    print(f"{'':52}{'fewest':>12}{'moved':>12}{'ratio':>8}{'limit':>7}")
    for result in results(small):
        bad = result.ratio > result.limit
        over += bad
        print(
            f"{result.name:52}{result.fewest / 1e6:9.3f} MB{result.count.total / 1e6:9.3f} MB"
            f"{result.ratio:8.3f}{result.limit:7.2f}{'  over' if bad else ''}"
        )
        for kernel in sorted({*result.count.loaded, *result.count.stored}):
            loaded, stored = result.count.loaded[kernel], result.count.stored[kernel]
            print(f"    {kernel:48}{loaded / 1e6:9.3f} MB loaded, {stored / 1e6:.3f} MB stored")
        for metric, value in (("fewest", result.fewest), ("moved", result.count.total)):
            rows.append({"operation": result.name, "metric": metric, "value": round(value), "unit": "bytes"})
    if not small:
        print(record.append("traffic", rows))
    return over > 0


if __name__ == "__main__":
    sys.exit(main())
