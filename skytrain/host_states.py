"""Fp32 weights and moments of a device's parameters in host memory: gradients come over, new bf16 weights go back.

The parameters travel in parts, each way through two buffers that take turns: while the host updates one part, the
gradients of the next come and the weights of the last go, on streams of their own. So all but the first gradients and
the last weights hide under the update, which takes ten times as long (28 bytes of host memory a parameter, against 2
each way). Nothing begins under backward: the host needs the norm of the whole gradient first, and waits for it.

On a CPU the same calls are plain copies.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from skytrain.host_adamw import HostAdamW

FORMATS = {"host": "fp32", "host_8bit": "8bit"}
"""optim.format -> moments of `HostAdamW`."""
PART = 2**26
"""Elements of a part, if no tensor alone has more: 128 MiB a buffer, 3 ms on the way and 30 in the update."""


class HostStates:
    """AdamW over bf16 parameters on a device, with everything else about them in host memory.

    Has the interface of `skytrain.kernels.adamw.AdamW`: state, steps (here on the CPU), rebind and step; and `masters`,
    the fp32 weights, zeros until they are written. decays: each parameter's weight decay. format: of FORMATS.
    part: elements, as PART. Raises UserError where the extension is not built.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        decays: Sequence[float],
        *,
        format: str,
        betas: tuple[float, float],
        eps: float,
        part: int = PART,
    ):
        self.masters = [torch.zeros(p.shape, dtype=torch.float32) for p in parameters]
        self.host = HostAdamW(self.masters, decays, format=FORMATS[format], betas=betas, eps=eps)
        self.state, self.steps = self.host.state, self.host.steps
        self.rebind(parameters)
        sizes = [p.numel() for p in parameters]
        self.parts = _parts(sizes, part)
        largest = max(sum(sizes[i] for i in indices) for indices in self.parts)
        self.comes, self.goes = (_Way(largest, parameters[0].device) for _ in range(2))

    def rebind(self, parameters: Sequence[Tensor]) -> None:
        """The same parameters at other addresses: their owner has moved them."""
        self.parameters = [p.detach() for p in parameters]

    @torch.no_grad()
    def refresh(self) -> None:
        """The parameters follow masters that were written from outside."""
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            parameter.copy_(master)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rate: float, divisor: Tensor, skip: Tensor) -> None:
        """One update by `gradient / divisor`; nothing at all changes where `skip` (0.0 or 1.0) is 1.

        gradients: one for each parameter, bf16, of its shape, on its device. divisor, skip: fp32 scalars there.
        """
        divisor, skip = torch.stack([divisor, skip]).cpu()  # Waits for the device: all gradients are there then.
        if skip > 0:
            return
        self._fetch(0, gradients)
        for k, indices in enumerate(self.parts):
            if k + 1 < len(self.parts):
                self._fetch(k + 1, gradients)
            parameters = [self.parameters[i] for i in indices]
            arrived, leaving = self.comes.views(k, parameters), self.goes.views(k, parameters)
            self.comes.wait(k)
            self.goes.wait(k)  # For what this buffer held two parts ago.
            self.host.step(arrived, rate, divisor, skip, leaving, first=indices[0])
            self.goes.copy(k, parameters, leaving)
        self.goes.join()

    def _fetch(self, k: int, gradients: Sequence[Tensor]) -> None:
        part = [gradients[i] for i in self.parts[k]]
        self.comes.copy(k, self.comes.views(k, part), part)


class _Way:
    """One direction: two buffers in turn, and on a GPU a stream, with an event for each buffer's last copy."""

    def __init__(self, elements: int, device: torch.device):
        cuda = device.type == "cuda"
        self.buffers = [torch.empty(elements, dtype=torch.bfloat16, pin_memory=cuda) for _ in range(2)]
        self.stream = torch.cuda.Stream(device) if cuda else None
        self.copied = [torch.cuda.Event() for _ in range(2)] if cuda else []

    def views(self, k: int, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Pieces of the buffer of part k, of the tensors' shapes."""
        sizes = [t.numel() for t in tensors]
        pieces = self.buffers[k % 2][: sum(sizes)].split(sizes)
        return [piece.view(t.shape) for piece, t in zip(pieces, tensors, strict=True)]

    def copy(self, k: int, targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
        with torch.cuda.stream(self.stream) if self.stream else contextlib.nullcontext():
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source, non_blocking=True)
            if self.stream:
                self.copied[k % 2].record()

    def wait(self, k: int) -> None:
        """Until the last copy through the buffer of part k is done."""
        if self.stream:
            self.copied[k % 2].synchronize()

    def join(self) -> None:
        """What is computed from now on comes after all copies."""
        if self.stream:
            torch.cuda.current_stream().wait_stream(self.stream)


def _parts(sizes: Sequence[int], limit: int) -> list[range]:
    """Consecutive tensors of at most `limit` elements together, or one that has more."""
    starts, held = [0], 0
    for i, size in enumerate(sizes):
        if held and held + size > limit:
            starts.append(i)
            held = 0
        held += size
    return [range(start, end) for start, end in zip(starts, [*starts[1:], len(sizes)], strict=True)]
