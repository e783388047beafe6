"""Every fused operation, described once: its inputs, ours and plain torch's way to call it, and its least work.

The ahead-of-time compilation (tests/test_aot.py), the count of bytes (traffic.py) and the benchmark (microbench.py)
all take the operations from here. An operation is called as `call(inputs) -> outputs`; its gradients are taken with
respect to the inputs named in `differentiable`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from skytrain.kernels.adamw import AdamW
from skytrain.kernels.linear_cross_entropy import linear_cross_entropy
from skytrain.kernels.rms_norm import add_rms_norm, rms_norm
from skytrain.kernels.rope import rope
from skytrain.kernels.swiglu import swiglu

Shape = dict[str, int]
Inputs = dict[str, object]
Outputs = tuple[Tensor, ...]

EPS = 1e-6
RATE, BETAS, ADAM_EPS, DECAY = 1e-5, (0.9, 0.95), 1e-8, 0.1
CHUNK_BYTES = 2 << 30

# A model's shapes; rows are a micro-batch's tokens.
MODELS: dict[str, Shape] = {
    "32B": {"rows": 16_384, "hidden": 5120, "inner": 27_648, "q": 40, "kv": 8, "head": 128, "vocabulary": 152_064},
    "7B": {"rows": 16_384, "hidden": 3584, "inner": 18_944, "q": 28, "kv": 4, "head": 128, "vocabulary": 152_064},
}
# Published figures for the head are at this shape.
LIGER_HEAD: Shape = {"rows": 8192, "hidden": 4096, "vocabulary": 131_072}
SMALL: Shape = {"rows": 256, "hidden": 512, "inner": 1024, "q": 4, "kv": 2, "head": 64, "vocabulary": 4000}


@dataclass(frozen=True)
class Make:
    """Makes tensors of normally distributed numbers; on the meta device, tensors without contents."""

    device: torch.device
    dtype: torch.dtype
    generator: torch.Generator | None = None

    def normal(self, *shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        x = torch.empty(shape, dtype=torch.float32, device=self.device)
        if not x.is_meta:
            x.normal_(generator=self.generator).mul_(scale).add_(shift)
        return x.to(self.dtype)

    def integers(self, end: int, n: int) -> Tensor:
        x = torch.empty(n, dtype=torch.int64, device=self.device)
        return x if x.is_meta else x.random_(end, generator=self.generator)


@dataclass(frozen=True)
class Operation:
    name: str
    inputs: Callable[[Make, Shape], Inputs]
    ours: Callable[[Inputs, str], Outputs]
    """(inputs, back end) -> outputs."""
    plain: Callable[[Inputs], Outputs]
    """Plain torch, in the inputs' dtype; with fp64 inputs, what results are compared with."""
    differentiable: tuple[str, ...]
    backward_reads: tuple[str, ...]
    """What the backward must read besides the outputs' gradients; a number is the output of that index."""
    dimensions: tuple[str, ...] = ("rows", "hidden")
    """Of the shape, those that matter here."""
    shared_gradients: tuple[str, ...] = ()
    """Inputs whose gradient is, number by number, another input's: written once."""
    flops: Callable[[Shape], int] | None = None
    """Of forward and backward together; None where memory is what it costs."""

    def forward_bytes(self, inputs: Inputs, outputs: Outputs) -> int:
        """The fewest: each input read once, each output written once."""
        return _bytes(*inputs.values(), *outputs)

    def backward_bytes(self, inputs: Inputs, outputs: Outputs) -> int:
        """The fewest: outputs' gradients and what else is needed read once, each gradient written once."""
        read = [outputs[int(name)] if name.isdigit() else inputs[name] for name in self.backward_reads]
        written = [inputs[name] for name in self.differentiable if name not in self.shared_gradients]
        return _bytes(*outputs, *read, *written)


def _bytes(*tensors: object) -> int:
    return sum(x.numel() * x.element_size() for x in tensors if isinstance(x, Tensor))


def _rms_norm(inputs: Inputs, backend: str) -> Outputs:
    return (rms_norm(inputs["x"], inputs["weight"], EPS, backend=backend),)


def _add_rms_norm(inputs: Inputs, backend: str) -> Outputs:
    return add_rms_norm(inputs["x"], inputs["residual"], inputs["weight"], EPS, backend=backend)


def _plain_add_rms_norm(inputs: Inputs) -> Outputs:
    total = inputs["x"] + inputs["residual"]
    return F.rms_norm(total, total.shape[-1:], inputs["weight"], EPS), total


def _swiglu(inputs: Inputs, backend: str) -> Outputs:
    return (swiglu(inputs["gate"], inputs["up"], backend=backend),)


def _rope_inputs(make: Make, shape: Shape) -> Inputs:
    half = shape["head"] // 2
    angles = Make(make.device, torch.float32, make.generator).normal(shape["rows"], half, scale=10.0)
    q, k = (make.normal(shape["rows"], shape[heads], shape["head"]) for heads in ("q", "kv"))
    return {"q": q, "k": k, "cos": angles.cos(), "sin": angles.sin()}


def _rope(inputs: Inputs, backend: str) -> Outputs:
    return rope(inputs["q"], inputs["k"], inputs["cos"], inputs["sin"], backend=backend)


def _plain_rope(inputs: Inputs) -> Outputs:
    cos, sin = inputs["cos"][:, None], inputs["sin"][:, None]

    def rotate(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)

    return rotate(inputs["q"]), rotate(inputs["k"])


def _head_inputs(make: Make, shape: Shape) -> Inputs:
    hidden = make.normal(shape["rows"], shape["hidden"])
    weight = make.normal(shape["vocabulary"], shape["hidden"], scale=2 * shape["hidden"] ** -0.5)
    labels = make.integers(shape["vocabulary"], shape["rows"])
    return {"hidden": hidden, "weight": weight, "labels": labels, "chunk_bytes": shape.get("chunk_bytes", CHUNK_BYTES)}


def _head(inputs: Inputs, backend: str) -> Outputs:
    hidden, weight, labels = inputs["hidden"], inputs["weight"], inputs["labels"]
    keywords = {"scale": 1 / max(1, hidden.shape[0]), "chunk_bytes": inputs["chunk_bytes"]}
    return (linear_cross_entropy(hidden, weight, labels, **keywords, backend=backend),)


def _plain_head(inputs: Inputs) -> Outputs:
    logits = F.linear(inputs["hidden"], inputs["weight"])
    return (F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), inputs["labels"]),)


OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation(
            "rms_norm",
            lambda make, shape: {
                "x": make.normal(shape["rows"], shape["hidden"]),
                "weight": make.normal(shape["hidden"], scale=0.1, shift=1.0),
            },
            _rms_norm,
            lambda inputs: (F.rms_norm(inputs["x"], inputs["x"].shape[-1:], inputs["weight"], EPS),),
            differentiable=("x", "weight"),
            backward_reads=("x", "weight"),
        ),
        Operation(
            "add_rms_norm",
            lambda make, shape: {
                "x": make.normal(shape["rows"], shape["hidden"]),
                "residual": make.normal(shape["rows"], shape["hidden"]),
                "weight": make.normal(shape["hidden"], scale=0.1, shift=1.0),
            },
            _add_rms_norm,
            _plain_add_rms_norm,
            differentiable=("x", "residual", "weight"),
            backward_reads=("1", "weight"),
            shared_gradients=("residual",),
        ),
        Operation(
            "swiglu",
            lambda make, shape: {
                "gate": make.normal(shape["rows"], shape["inner"]),
                "up": make.normal(shape["rows"], shape["inner"]),
            },
            _swiglu,
            lambda inputs: (F.silu(inputs["gate"]) * inputs["up"],),
            differentiable=("gate", "up"),
            backward_reads=("gate", "up"),
            dimensions=("rows", "inner"),
        ),
        Operation(
            "rope",
            _rope_inputs,
            _rope,
            _plain_rope,
            differentiable=("q", "k"),
            backward_reads=("cos", "sin"),
            dimensions=("rows", "q", "kv", "head"),
        ),
        Operation(
            "linear_cross_entropy",
            _head_inputs,
            _head,
            _plain_head,
            differentiable=("hidden", "weight"),
            backward_reads=(),
            dimensions=("rows", "hidden", "vocabulary"),
            flops=lambda shape: 6 * shape["rows"] * shape["hidden"] * shape["vocabulary"],
        ),
    )
}


# Bytes of a parameter that a step must load and store, but for scales (0.03 each a code).
ADAMW_BYTES = {"fp32": (16, 12), "fp32_8bit": (10, 6), "split_8bit": (8, 6)}


def adamw(format: str, weights: list[Tensor], backend: str) -> AdamW:
    """Ours, in one of its formats, for fp32 weights, which it updates in place unless the format is another."""
    parameters = [weight.to(torch.bfloat16) for weight in weights] if format == "split_8bit" else weights
    decays = [DECAY if weight.ndim > 1 else 0.0 for weight in weights]
    return AdamW(parameters, decays, format=format, betas=BETAS, eps=ADAM_EPS, backend=backend)


def adamw_step(optimizer: AdamW, gradients: list[Tensor]) -> None:
    device = gradients[0].device
    one, no = torch.ones((), device=device), torch.zeros((), device=device)
    optimizer.step(gradients, RATE, one, no)


def adamw_fewest_bytes(optimizer: AdamW, gradients: list[Tensor]) -> int:
    """Weights and states read and written once, gradients read once."""
    states = [x for tensors in optimizer.state.values() for x in tensors]
    return 2 * _bytes(*optimizer.parameters, *states) + _bytes(*gradients)


def with_gradients(operation: Operation, inputs: Inputs) -> Inputs:
    """The same tensors as fresh leaves, those that are differentiated with requires_grad."""
    return {
        name: x.detach().requires_grad_(name in operation.differentiable) if isinstance(x, Tensor) else x
        for name, x in inputs.items()
    }


def backward(operation: Operation, inputs: Inputs, outputs: Outputs, upstream: Outputs) -> Outputs:
    """Gradients of the differentiable inputs, in their order."""
    wanted = [inputs[name] for name in operation.differentiable]
    return torch.autograd.grad(outputs, wanted, upstream)
