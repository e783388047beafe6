"""AdamW and SGD over the local shards, the schedule, and the norm of the whole gradient.

The clip factor and the guard against non-finite steps are scalars in device memory: the fused kernels (torch's for fp32
states, ours for 8-bit ones) read them there, so that a step never waits for the device and clipping
costs no pass over the gradients of its own.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from skytrain.config import Optim, Schedule
from skytrain.host_states import FORMATS as HOST_FORMATS
from skytrain.host_states import HostStates
from skytrain.kernels.adamw import AdamW
from skytrain.kernels.quantize import join, scales_shape, split

EMBEDDING = "embed_tokens."
REMAINDER = "optim.remainder."
BF16_WEIGHTS = {"split_8bit", *HOST_FORMATS}
"""Formats whose weights on a rank are bf16."""
SAME_STATES = ({"fp32", "host"}, {"fp32_8bit", "split_8bit", "host_8bit"})
"""Formats that hold the same numbers in other places, so that one takes on another's checkpoint exactly."""


def learning_rate(step: int, total: int, schedule: Schedule, peak: float) -> float:
    """The rate of step `step` (from 0) of a run of `total` steps: a pure function, so resuming needs no state.

    Warm-up of w steps: peak * (step + 1) / w, so the peak is reached at step w - 1 (at step 0 without warm-up).
    The floor, `min_ratio` * peak, is reached exactly at the last step.
    """
    warmup = schedule.warmup_steps or math.ceil((schedule.warmup_ratio or 0.0) * total)
    if step < warmup:
        return peak * (step + 1) / warmup
    top = max(warmup - 1, 0)
    if schedule.name == "wsd":
        top = max(top, total - 1 - math.ceil(schedule.decay_ratio * total))
    done = min(max(step - top, 0) / max(total - 1 - top, 1), 1.0)
    shape = {
        "constant": 1.0,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
        "linear": 1.0 - done,
        "wsd": 1.0 - done,
    }[schedule.name]
    return peak * (schedule.min_ratio + (1.0 - schedule.min_ratio) * shape)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(parameter: Tensor, part: Tensor, shape: tuple[int, ...], mesh: DeviceMesh | None = None) -> Tensor:
    """`part`, this rank's piece of a state, as a tensor sharded like `parameter`; shape: that of the whole.

    mesh: where the parts are in host memory, the ranks' CPUs.
    """
    if not isinstance(parameter, DTensor):
        return part
    stride = torch.empty(shape, device="meta").stride()
    mesh = mesh or parameter.device_mesh
    options = {"run_check": False, "shape": torch.Size(shape), "stride": stride}
    return DTensor.from_local(part, mesh, parameter.placements, **options)


class Optimizer:
    """AdamW (Loshchilov and Hutter, decoupled decay, bias corrected) or SGD without momentum.

    State of a parameter: two moments sharded like it (AdamW), fp32 or, in the 8-bit formats, codes with a scale for
    each 128 columns of a row; in the format `split_8bit` also the int16 remainder that makes its bf16 values fp32 ones
    (kernels/adamw.py); in the `host` formats moments and fp32 weights in host memory (host_states.py). One step counter
    serves all parameters and lives with the moments: a skipped step does not count for the bias correction.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        config: Optim,
        backend: str = "auto",
        host_mesh: DeviceMesh | None = None,
    ):
        """backend: of the 8-bit formats' kernel on the device, "triton", "reference" or "auto". host_mesh: the ranks'
        CPUs, where sharded parameters have states in host memory."""
        self.config = config
        self.parameters = dict(named_parameters)
        device = next(iter(self.parameters.values())).device
        self.steps = torch.zeros((), dtype=torch.float32, device=device)
        self.states: dict[str, dict[str, Tensor]] = {"exp_avg": {}, "exp_avg_sq": {}}
        self.masters: dict[str, Tensor] = {}
        """Of the host formats."""
        self.host_mesh = host_mesh
        self.arriving: dict[str, list[Tensor]] = {}
        """Weights of a checkpoint that holds them otherwise, while it is loaded."""
        self.engine: AdamW | HostStates | None = None
        if config.format != "fp32":
            self._start_engine(backend, host_mesh)
            return
        if config.name == "adamw":
            for moment in self.states.values():
                moment.update({name: torch.zeros_like(p, requires_grad=False) for name, p in self.parameters.items()})
        held = [name for name, p in self.parameters.items() if local(p).numel() > 0]
        decayed = [name for name in held if self._decay(name) > 0]
        kept = [name for name in held if self._decay(name) == 0]
        self.groups = [(names, decay) for names, decay in ((decayed, config.weight_decay), (kept, 0.0)) if names]

    def _decay(self, name: str) -> float:
        """Norms and biases are not decayed."""
        if self.parameters[name].ndim == 1 or (EMBEDDING in name and not self.config.decay_embeddings):
            return 0.0
        return self.config.weight_decay

    def _start_engine(self, backend: str, host_mesh: DeviceMesh | None) -> None:
        """The engine's states, and the same memory as tensors sharded like the parameters."""
        c, on_host = self.config, self.config.format in HOST_FORMATS
        options = {"format": c.format, "betas": c.betas, "eps": c.eps} | ({} if on_host else {"backend": backend})
        parts = [local(p) for p in self.parameters.values()]
        decays = [self._decay(name) for name in self.parameters]
        self.engine = (HostStates if on_host else AdamW)(parts, decays, **options)
        mesh = host_mesh if on_host else None
        self.steps = self.engine.steps
        self.states = {kind: {} for kind in self.engine.state}
        for kind, tensors in self.engine.state.items():
            for (name, p), part in zip(self.parameters.items(), tensors):
                if part is not None:
                    shape = scales_shape(p.shape) if kind.endswith("_max") else tuple(p.shape)
                    self.states[kind][name] = like(p, part, shape, mesh)
        if on_host:
            pairs = zip(self.parameters.items(), self.engine.masters)
            self.masters = {name: like(p, part, tuple(p.shape), mesh) for (name, p), part in pairs}

    @torch.no_grad()
    def write(self, name: str, values: Tensor) -> None:
        """Sets this rank's part of a parameter to `values`, of its shape and any floating dtype, exactly to fp32."""
        part = local(self.parameters[name])
        if name in self.masters:
            local(self.masters[name]).copy_(values)
        if "remainder" in self.states:
            values, remainder = split(values.float())
            local(self.states["remainder"][name]).copy_(remainder)
        part.copy_(values)

    @torch.no_grad()
    def master(self, name: str) -> Tensor:
        """The exact fp32 weights of a parameter, sharded like it."""
        parameter = self.parameters[name]
        if name in self.masters:
            return self.masters[name]
        if "remainder" not in self.states:
            return parameter.detach()
        exact = join(local(parameter), local(self.states["remainder"][name]))
        return like(parameter, exact, tuple(parameter.shape))

    def gradients(self) -> list[Tensor]:
        """This rank's shards of the gradients, of their parameters' dtype."""
        return [local(p.grad) for p in self.parameters.values() if p.grad is not None and local(p.grad).numel() > 0]

    @torch.no_grad()
    def step(self, rate: float, divisor: Tensor, skip: Tensor) -> None:
        """One update by `gradient / divisor`; nothing at all changes where `skip` (0.0 or 1.0) is 1.

        divisor, skip: fp32 scalars on the device. Gradients may be left divided.
        """
        if self.engine is not None:
            self._rebind()
            gradients = [local(p.grad) for p in self.parameters.values()]
            return self.engine.step(gradients, rate, divisor, skip)
        self.steps += 1.0 - skip
        for names, decay in self.groups:
            weights = [local(self.parameters[name]) for name in names]
            grads = [local(self.parameters[name].grad) for name in names]
            common: dict[str, Any] = {"lr": rate, "grad_scale": divisor, "found_inf": skip, "maximize": False}
            if self.config.name == "sgd":
                torch._fused_sgd_(
                    weights, grads, [], weight_decay=decay, momentum=0.0, dampening=0.0, nesterov=False,
                    is_first_step=False, **common,
                )  # fmt: skip
                continue
            moments = [[local(moment[name]) for name in names] for moment in self.states.values()]
            torch._fused_adamw_(
                weights, grads, *moments, [], [self.steps] * len(names), beta1=self.config.betas[0],
                beta2=self.config.betas[1], weight_decay=decay, eps=self.config.eps, amsgrad=False, **common,
            )  # fmt: skip

    def zero_grad(self) -> None:
        for p in self.parameters.values():
            p.grad = None

    def _rebind(self) -> None:
        """FSDP2 gives shards of uneven parameters new memory before the first forward pass."""
        parts = [local(p) for p in self.parameters.values()]
        if any(p.data_ptr() != old.data_ptr() for p, old in zip(parts, self.engine.parameters)):
            self.engine.rebind(parts)

    def state(self) -> dict[str, Tensor]:
        """All weights and states that a checkpoint must hold, by the name they have there. Loading writes into these
        tensors, and calls `loaded`."""
        weights = self.masters or {name: p.detach() for name, p in self.parameters.items()}
        state = {f"optim.{kind}.{name}": t for kind, held in self.states.items() for name, t in held.items()}
        return {**{f"model.{name}": t for name, t in weights.items()}, **state, "optim.steps": self.steps}

    def state_for(self, stored: Collection[str]) -> dict[str, Tensor]:
        """`state`, as a checkpoint with these names holds it: weights whole or split, where it is otherwise here."""
        state, self.arriving = self.state(), {}  # An earlier candidate may have been of another format, and damaged.
        split_there = any(name.startswith(REMAINDER) for name in stored)
        if split_there == ("remainder" in self.states):
            return state
        state = {name: tensor for name, tensor in state.items() if not name.startswith(REMAINDER)}
        for name in self.parameters:
            dtypes = (torch.bfloat16, torch.int16) if split_there else (torch.float32,)
            self.arriving[name] = [self._on_host(name, dtype) for dtype in dtypes]
            state |= zip((f"model.{name}", REMAINDER + name), self.arriving[name])
        return state

    def loaded(self) -> None:
        """After a checkpoint was loaded into the tensors of `state` or `state_for`."""
        for name, parts in self.arriving.items():
            values = [local(part) for part in parts]
            self.write(name, join(*values) if len(values) == 2 else values[0])
        self.arriving = {}
        if self.masters:
            self._rebind()
            self.engine.refresh()

    def _on_host(self, name: str, dtype: torch.dtype) -> Tensor:
        """Memory for a parameter's values on their way, sharded like it."""
        parameter = self.parameters[name]
        part = torch.empty(local(parameter).shape, dtype=dtype)
        return like(parameter, part, tuple(parameter.shape), self.host_mesh)


def sum_over_ranks(loss: Tensor, gradients: list[Tensor], replicas: int) -> tuple[Tensor, Tensor]:
    """(loss of the global step, norm of its whole gradient), both fp32 scalars on the device: one all-reduce.

    loss: this rank's share. gradients: this rank's shards, already summed over the ranks by the reduce-scatter;
    each is held by `replicas` ranks (the groups of HSDP).
    """
    norm = torch.zeros_like(loss)
    if gradients:
        # torch's own total norm would add up the squares of bf16 gradients in bf16.
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, 2.0, dtype=torch.float32)))
    pair = torch.stack([loss, norm.square() / replicas])
    dist.all_reduce(pair)
    return pair[0], pair[1].sqrt()
