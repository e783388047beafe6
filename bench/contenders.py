"""Who is measured on each operation: ours, plain torch, torch's own fused and compiled, Liger, FlashOptim.

What is not installed, or cannot run here, is a reason in words instead.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from cases import ADAM_EPS, ADAMW_BYTES, BETAS, DECAY, EPS, RATE, Inputs, Operation, Outputs, adamw, adamw_step
from torch import Tensor

from skytrain.kernels import backend


@dataclass(frozen=True)
class Contender:
    name: str
    call: Callable[[Inputs], Outputs]
    ours: bool = False
    prepare: Callable[[Inputs], Inputs] = lambda inputs: inputs
    """What is done to the inputs beforehand, off the clock."""


@dataclass(frozen=True)
class Absent:
    name: str
    reason: str


def contenders(operation: Operation, device: torch.device) -> Iterator[Contender | Absent]:
    for name in ("triton", "reference"):
        reason = backend.obstacle(name, device)
        if name == "triton" and backend.INTERPRETED:
            reason = "the interpreter's time says nothing"
        if reason is None:
            yield Contender(f"skytrain {name}", lambda inputs, name=name: operation.ours(inputs, name), ours=True)
        else:
            yield Absent(f"skytrain {name}", reason)
    yield Contender("torch", operation.plain)
    if operation.name == "linear_cross_entropy":
        if hasattr(F, "linear_cross_entropy") and hasattr(torch.nn, "LinearCrossEntropyOptions"):
            yield Contender("torch linear_cross_entropy", _torch_head)
        else:
            yield Absent("torch linear_cross_entropy", f"not in torch {torch.__version__}")
    if device.type == "cuda":
        yield Contender("torch compiled", torch.compile(operation.plain, dynamic=False))
    else:
        yield Absent("torch compiled", "compiled for a GPU only")
    reason = backend.obstacle("liger", device)
    if reason is None:
        yield Contender("liger", LIGER[operation.name], prepare=LIGER_PREPARE.get(operation.name, lambda x: x))
    else:
        yield Absent("liger", reason)


def _torch_head(inputs: Inputs) -> Outputs:
    options = torch.nn.LinearCrossEntropyOptions()
    return (F.linear_cross_entropy(inputs["hidden"], inputs["weight"], inputs["labels"], options=options),)


def _liger_rms_norm(inputs: Inputs) -> Outputs:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    # Otherwise its backward writes over the gradient that it is given, which here is given again.
    return (LigerRMSNormFunction.apply(inputs["x"], inputs["weight"], EPS, 0.0, "llama", False),)


def _liger_add_rms_norm(inputs: Inputs) -> Outputs:
    from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction

    operands = inputs["x"], inputs["residual"], inputs["weight"]
    return LigerFusedAddRMSNormFunction.apply(*operands, EPS, 0.0, "llama", False)


def _liger_swiglu(inputs: Inputs) -> Outputs:
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    return (LigerSiLUMulFunction.apply(inputs["gate"], inputs["up"]),)


def _liger_rope(inputs: Inputs) -> Outputs:
    from liger_kernel.ops.rope import LigerRopeFunction

    q, k = (inputs[name].transpose(0, 1)[None] for name in ("q", "k"))
    return tuple(x[0].transpose(0, 1) for x in LigerRopeFunction.apply(q, k, inputs["cos"], inputs["sin"]))


def _whole_angles(inputs: Inputs) -> Inputs:
    return inputs | {name: torch.cat((inputs[name], inputs[name]), -1)[None] for name in ("cos", "sin")}


def _liger_head(inputs: Inputs) -> Outputs:
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    return (LigerFusedLinearCrossEntropyFunction.apply(inputs["hidden"], inputs["weight"], inputs["labels"])[0],)


LIGER = {
    "rms_norm": _liger_rms_norm,
    "add_rms_norm": _liger_add_rms_norm,
    "swiglu": _liger_swiglu,
    "rope": _liger_rope,
    "linear_cross_entropy": _liger_head,
}
LIGER_PREPARE = {"rope": _whole_angles}


@dataclass(frozen=True)
class Optimizer:
    name: str
    start: Callable[[list[Tensor]], tuple[Callable[[list[Tensor]], None], Callable[[], list[Tensor]]]]
    """fp32 weights -> (step(gradients), weights() in fp32 or wider)."""
    dtype: torch.dtype
    bytes_moved: int
    """A parameter, at the least."""
    drift: float
    """Of the distance moved, the most it may be off after a few steps."""
    ours: bool = False


def optimizers(device: torch.device) -> Iterator[Optimizer | Absent]:
    for name in ("triton", "reference"):
        reason = backend.obstacle(name, device)
        if name == "triton" and backend.INTERPRETED:
            reason = "the interpreter's time says nothing"
        for format, moved in ADAMW_BYTES.items():
            if reason is not None:
                yield Absent(f"skytrain {name} {format}", reason)
            elif name == "triton" or device.type == "cpu":
                narrow = torch.bfloat16 if format == "split_8bit" else torch.float32
                drift = 1e-3 if format == "fp32" else 0.1
                start = functools.partial(_ours, format=format, name=name)
                yield Optimizer(f"skytrain {name} {format}", start, narrow, sum(moved), drift, ours=True)
    yield Optimizer("torch fused", lambda weights: _torch_adamw(weights, fused=True), torch.float32, 28, 1e-3)
    yield Optimizer("torch foreach", lambda weights: _torch_adamw(weights, foreach=True), torch.float32, 28, 1e-3)
    if importlib.util.find_spec("flashoptim") is None:
        yield Absent("flashoptim", "flashoptim is not installed")
    elif device.type != "cuda":
        yield Absent("flashoptim", "it needs a GPU")
    else:
        yield Optimizer("flashoptim", _flashoptim, torch.bfloat16, 12, 0.5)


def _ours(weights: list[Tensor], format: str, name: str):
    optimizer = adamw(format, weights, name)
    return lambda gradients: adamw_step(optimizer, gradients), lambda: _joined(optimizer)


def _joined(optimizer) -> list[Tensor]:
    from skytrain.kernels.quantize import join

    if "remainder" not in optimizer.state:
        return optimizer.parameters
    return [join(*pair) for pair in zip(optimizer.parameters, optimizer.state["remainder"])]


def _torch_adamw(weights: list[Tensor], **implementation: bool):
    return _stepping(torch.optim.AdamW(_groups(weights), lr=RATE, betas=BETAS, eps=ADAM_EPS, **implementation), weights)


def _flashoptim(weights: list[Tensor]):
    from flashoptim import FlashAdamW

    weights = [weight.to(torch.bfloat16) for weight in weights]
    return _stepping(FlashAdamW(_groups(weights), lr=RATE, betas=BETAS, eps=ADAM_EPS), weights)


def _groups(weights: list[Tensor]) -> list[dict[str, object]]:
    decayed, others = [w for w in weights if w.ndim > 1], [w for w in weights if w.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _stepping(optimizer: torch.optim.Optimizer, weights: list[Tensor]):
    def step(gradients: list[Tensor]) -> None:
        for weight, gradient in zip(weights, gradients):
            weight.grad = gradient
        optimizer.step()

    return step, lambda: weights
