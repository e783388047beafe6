"""AdamW in host memory: fp32 masters and moments stay there, gradients come in and bf16 weights go out.

For models whose states do not fit in the device's memory. The formula, and with 8-bit moments the codes and the dither,
are those of kernels/adamw.py, so that weights and states equal its reference to the bit, and a checkpoint of `fp32` or
`fp32_8bit` goes on here and back. The arithmetic is in csrc/host_adamw_kernel.h: AVX-512, AVX2 or plain, found when the
program runs, over torch's threads.

Bytes a parameter in host memory without its gradient, and read and written in a step with bf16 gradients in and bf16
weights out (2 more with fp32 gradients, 2 fewer without weights out):

    format   masters and moments   traffic
    fp32     12                    28
    8bit     6.06                  16.1
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from skytrain.errors import UserError
from skytrain.kernels.adamw import bias_corrections, new_state

STATES = {"fp32": "fp32", "8bit": "fp32_8bit"}
"""Format of the moments -> format of kernels/adamw.py with the same states."""


class HostAdamW:
    """AdamW over masters in host memory; the counterpart of `skytrain.kernels.adamw.AdamW`.

    masters: contiguous fp32 tensors on the CPU, updated in place. decays: each one's weight decay. format: of the
    moments of tensors of two or more dimensions, "fp32" or "8bit"; those of others are fp32.
    state: kind -> a tensor for each master, or None where it has none; the kinds, shapes and dtypes are AdamW.state's.
    With `steps` (fp32 scalar: the steps that were not skipped) that is all a checkpoint needs; loading writes into
    these tensors. isa: of those that `instruction_sets` names, for tests; the widest by default.
    Raises UserError where the extension is not built, ValueError for masters that do not fit.
    """

    def __init__(
        self,
        masters: Sequence[Tensor],
        decays: Sequence[float],
        *,
        format: str = "fp32",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        isa: str | None = None,
    ):
        instruction_sets()
        _check(masters, decays, format)
        self.format, self.betas, self.eps, self.isa = format, betas, eps, isa
        self.masters = [p.detach() for p in masters]
        self.decays = torch.tensor(decays, dtype=torch.float32)
        self.steps = torch.zeros((), dtype=torch.float32)
        self.state = new_state(self.masters, STATES[format])
        self._betas = torch.tensor(betas, dtype=torch.float64)

    @torch.no_grad()
    def step(
        self,
        gradients: Sequence[Tensor],
        rate: float,
        divisor: Tensor,
        skip: Tensor,
        out: Sequence[Tensor] | None = None,
        *,
        first: int | None = None,
    ) -> None:
        """One update by `gradient / divisor`; nothing at all changes where `skip` (0.0 or 1.0) is 1.

        gradients: one for each master, contiguous, of its shape, fp32 or bf16; they stay as they are. divisor, skip:
        fp32 scalars on the CPU. out: bf16 tensors of the masters' shapes that receive the new weights, rounded to
        nearest even as torch rounds. first: where a step is made of several calls, the master that the first gradient
        is of; the call with the last master's gradient counts the step. Raises ValueError for a gradient too few and
        for tensors on a device, RuntimeError for others that do not fit, before anything changes.
        """
        # With one of these the dispatcher would look for the operation on that device, and say only that there is none.
        for name, tensors in (("gradient", gradients), ("out", out or [])):
            for i, t in enumerate(tensors):
                if t.device.type != "cpu":
                    raise ValueError(f"{name} {i} is on {t.device}: it must be in host memory")
        # The operation's lists hold a tensor for every master; it does not look at the scales of fp32 moments.
        if first is None and len(gradients) != len(self.masters):
            raise ValueError(f"{len(gradients)} gradients for {len(self.masters)} masters: there must be as many")
        first = first or 0
        part = slice(first, first + len(gradients))
        kinds = ("exp_avg", "exp_avg_sq", "exp_avg_max", "exp_avg_sq_max")
        lists = [self.state.get(kind, [None] * len(self.masters))[part] for kind in kinds]
        states = [[torch.empty(0) if t is None else t for t in tensors] for tensors in lists]
        steps = self.steps + (1.0 - skip)
        torch.ops.skytrain.host_adamw(
            self.masters[part], gradients, *states, out or [], self.decays[part], steps,
            bias_corrections(self._betas, steps), divisor, skip, rate, *self.betas, self.eps, first, self.isa,
        )  # fmt: skip
        if part.stop == len(self.masters):
            self.steps.copy_(steps)


def instruction_sets() -> list[str]:
    """Those that this processor runs, of "avx512", "avx2" and "plain", the widest first."""
    try:
        import skytrain._C  # noqa: F401  (registers the operations)
    except ImportError as error:
        raise UserError(
            "the optimizer in host memory needs skytrain._C, which is not built here; "
            "run `pip install --no-build-isolation -e .` beside torch, or choose another optim.format"
        ) from error
    return torch.ops.skytrain.host_isas()


def _check(masters: Sequence[Tensor], decays: Sequence[float], format: str) -> None:
    if format not in STATES:
        raise ValueError(f"unknown format of the moments {format!r}; known: {', '.join(STATES)}")
    if not masters or len(masters) != len(decays):
        raise ValueError(f"{len(masters)} masters and {len(decays)} decays: there must be as many, and at least 1")
    for i, p in enumerate(masters):
        if p.dtype != torch.float32 or not p.is_contiguous() or p.device.type != "cpu":
            raise ValueError(
                f"master {i} is {p.dtype} with strides {p.stride()} on {p.device}: it must be contiguous fp32 in host "
                "memory"
            )
