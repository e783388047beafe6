"""Host memory for what a layer's backward will need: moved out after forward made it, back a layer before its use.

On a GPU the bytes travel on two streams of their own, into pinned buffers that are used again in every step, and the
host never waits. The order of events that keeps memory whole:

- out: the copy waits for what was computed so far. The tensor is then held, and nothing else is, until the compute
  stream has waited for the copy, two layers later: only then may its memory be given to somebody else. (record_stream
  would free it when the *host* sees the copy done; the host runs far ahead, so the peak would grow by chance.)
- back: the tensor's memory comes from the compute stream, so the copy waits for all that was computed so far, and
  whoever uses the tensor waits for the copy.
- a buffer: its next copy out waits for its last copy back.

On a CPU the same calls are plain copies.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

SLAB_BYTES, SLAB_BUFFERS = 2**30, 8
"""Buffers are cut from slabs, since torch rounds pinned memory up to a power of two: a buffer of 160 MiB alone would
take 256, and six of them take 1,024. A slab has as many as fit, at most eight."""


class HostMemory:
    """The buffers, the streams and the counters of one device's offloaded tensors."""

    def __init__(self, tokens: int) -> None:
        """tokens: the most in one row; buffers are made for it, so that the steps' rows can all use them."""
        self.tokens = tokens
        self.bytes_out = self.bytes_in = 0
        """Moved to the host and back, since the start."""
        self._free: dict[int, list[tuple[Tensor, torch.cuda.Event | None]]] = {}
        self._leaving: deque[list[tuple[Tensor, int, torch.cuda.Event]]] = deque([[]])
        self._streams: tuple[torch.cuda.Stream, torch.cuda.Stream] | None = None
        self._last: weakref.ref[Frame] | None = None
        self._told = 0

    def take_count(self) -> int:
        """Bytes moved to the host since this was last asked."""
        count, self._told = self.bytes_out - self._told, self.bytes_out
        return count

    def free_buffers(self) -> list[Tensor]:
        """Those that hold nothing now: between two steps, all."""
        return [buffer for buffers in self._free.values() for buffer, _ in buffers]

    def begin(self, tokens: int) -> Frame:
        """The place of one layer's forward over a row of `tokens`."""
        # What the layer before the last one sent off may be freed now. The last one's may still be on its way.
        self._release(keep=1)
        self._leaving.append([])
        frame = Frame(self, tokens, self._last)
        self._last = weakref.ref(frame)
        return frame

    def _release(self, keep: int) -> None:
        """Lets go of all copied tensors but those of the last `keep` layers."""
        while len(self._leaving) > keep:
            for tensor, version, done in self._leaving.popleft():
                torch.cuda.current_stream(tensor.device).wait_event(done)
                if tensor._version != version:
                    raise RuntimeError(f"a tensor {tuple(tensor.shape)} was changed in place while it was offloaded")

    def _buffer(self, size: int, tokens: int, device: torch.device) -> tuple[Tensor, torch.cuda.Event | None]:
        """A free buffer of at least `size` bytes, and the event after which it can be written."""
        # Of one size for all rows: whatever a row's length, a kind of tensor has the same bytes a token.
        # A multiple of 256, so that each buffer of a slab is aligned for every dtype.
        capacity = max(size, math.ceil(size / max(tokens, 1)) * self.tokens, 1)
        capacity = math.ceil(capacity / 256) * 256
        free = self._free.setdefault(capacity, [])
        if not free:
            count = min(SLAB_BUFFERS, max(1, SLAB_BYTES // capacity))
            slab = torch.empty(count * capacity, dtype=torch.uint8, pin_memory=device.type == "cuda")
            free += [(slab[i * capacity : (i + 1) * capacity], None) for i in range(count)]
        return free.pop()

    def _write(self, tensor: Tensor, tokens: int) -> Stored:
        size = tensor.numel() * tensor.element_size()
        buffer, free = self._buffer(size, tokens, tensor.device)
        stored = Stored(buffer, tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        self.bytes_out += size
        if tensor.device.type != "cuda":
            stored.on_host().copy_(tensor)
            return stored
        out, _ = self._copy_streams(tensor.device)
        out.wait_stream(torch.cuda.current_stream(tensor.device))
        if free is not None:
            out.wait_event(free)
        with torch.cuda.stream(out):
            stored.on_host().copy_(tensor, non_blocking=True)
        stored.written = out.record_event()
        held = alias(tensor)
        self._leaving[-1].append((held, held._version, stored.written))
        return stored

    def _read(self, stored: Stored) -> None:
        """Begins the way back."""
        tensor = torch.empty_strided(stored.shape, stored.stride, dtype=stored.dtype, device=stored.device)
        self.bytes_in += tensor.numel() * tensor.element_size()
        host = stored.on_host()
        if tensor.device.type != "cuda":
            tensor.copy_(host)
        else:
            _, back = self._copy_streams(tensor.device)
            back.wait_stream(torch.cuda.current_stream(tensor.device))
            back.wait_event(stored.written)
            with torch.cuda.stream(back):
                tensor.copy_(host, non_blocking=True)
            stored.read = back.record_event()
        stored.loaded = tensor
        self._free[len(stored.buffer)].append((stored.buffer, stored.read))

    def _copy_streams(self, device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
        if self._streams is None:
            self._streams = torch.cuda.Stream(device), torch.cuda.Stream(device)
        return self._streams


@dataclass
class Stored:
    """A tensor that is on the host, or on its way."""

    buffer: Tensor
    """uint8; the tensor is at its start."""
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    written: torch.cuda.Event | None = None
    read: torch.cuda.Event | None = None
    loaded: Tensor | None = None

    def on_host(self) -> Tensor:
        size = math.prod(self.shape) * self.dtype.itemsize
        return self.buffer[:size].view(self.dtype).as_strided(self.shape, self.stride)


@dataclass
class Frame:
    """What one layer's forward over one row has put into host memory."""

    host: HostMemory
    tokens: int
    before: weakref.ref[Frame] | None
    """The frame of the layer that ran before, which backward comes to next. Weak: a graph that is dropped frees it."""
    waiting: list[Stored] = field(default_factory=list)

    def put(self, tensor: Tensor) -> Stored:
        """Copies the tensor, which must not be changed afterwards; the caller drops it."""
        stored = self.host._write(tensor if is_dense(tensor) else tensor.contiguous(), self.tokens)
        self.waiting.append(stored)
        return stored

    def get(self, stored: Stored) -> Tensor:
        """The tensor, on its device again, once."""
        self.arrive()
        if stored.loaded is None:
            raise RuntimeError("an offloaded tensor is read a second time: backward ran twice over one forward")
        if stored.read is not None:
            torch.cuda.current_stream(stored.device).wait_event(stored.read)
        tensor, stored.loaded = stored.loaded, None
        return tensor

    def unpack(self, packed: Tensor | Stored) -> Tensor:
        """`get`, as the unpack hook of saved tensors, some of which were left as they are."""
        return self.get(packed) if isinstance(packed, Stored) else packed

    def arrive(self) -> None:
        """Backward is here: begins the way back of this frame's tensors, and of those of the layer to come."""
        self.host._release(keep=0)
        self._load()
        if self.before is not None and (before := self.before()) is not None:
            before._load()

    def _load(self) -> None:
        waiting, self.waiting = self.waiting, []
        for stored in waiting:
            self.host._read(stored)


def alias(tensor: Tensor) -> Tensor:
    """The tensor without its graph, whose reference would close a cycle; changes in place show in both's `_version`."""
    # Below autograd, where a dispatch mode runs, detach would otherwise make a view with a version of its own.
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):
        return tensor.detach()


def is_dense(tensor: Tensor) -> bool:
    """Whether its elements lie without gaps, in any order of the dimensions."""
    return tensor.is_contiguous() or torch.empty_like(tensor, device="meta").stride() == tensor.stride()
