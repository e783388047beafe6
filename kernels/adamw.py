"""AdamW over all parameters of a rank in one launch, in three state formats.

For a gradient g (already summed over the ranks), divided by the clip divisor d, at step t with rate r and decay c:

    g = g / d        m = m + (1 - b1) (g - m)        v = v + (1 - b2) (g^2 - v)
    w = w - (r c w + r / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps))

all in fp32. Decay and update are added before the one subtraction, since w (1 - r c) in fp32 loses part of an r c of
1e-6. The moments move by a part of their distance, since b2 v + (1 - b2) g^2 is off by 1e-5 in the end: fp32's 0.999
and 0.001 do not add up to 1. Formats, with bytes a parameter including its gradient, and read and written in a step:

    format        weight                   gradient   moments                  memory   traffic
    fp32          fp32                     fp32       fp32                     16       28
    fp32_8bit     fp32                     fp32       8-bit codes and scales   10.06    16.1
    split_8bit    bf16 + int16 remainder   bf16       8-bit codes and scales   8.06     14.1

(see quantize.py for both encodings). The step uses the new moments before they are coded; the codes are what the next
step starts from. Tensors of one dimension keep fp32 moments in every format.

One launch. A program updates 16 groups of 128 columns of one tensor: its number finds (tensor, block) in a table, the
tensor finds the addresses. Both tables are made once, since weights and states stay where they are; only the
gradients are new tensors in each step. Their addresses travel in a fresh pinned buffer by an asynchronous copy: torch's
pinned memory is not handed out again before the copies from it are done, so the host may run ahead by any number of
steps without overwriting what is under way. A group lies within one program, so that its scale is known before its
codes are written, and every byte is read once and written once, in 128-bit accesses where all of a tensor's addresses
are multiples of 16 and its rows are whole groups. Any other tensor takes a slower path with the same results.

Nothing waits for the device: divisor, skip and step count are read there. Where skip is 1 a program ends before it
touches anything.

Kernel and reference share the state tensors and the arithmetic. In the interpreter they are equal to the bit. A GPU's
compiler contracts products and sums, and its root and quotient are off by up to 2 ulp of the update (those that are
exact cost 32 more registers, which spills), so weights differ by an ulp or so, and codes where rounding is close.
This is no torch operation: it is never differentiated or traced.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from skytrain.kernels import backend
from skytrain.kernels.backend import jit, resolve, tl
from skytrain.kernels.quantize import (
    GROUP,
    decode_first_tile,
    decode_second_tile,
    dequantize,
    dither,
    dither_tile,
    encode_first_tile,
    encode_second_tile,
    join,
    join_tile,
    quantize_first,
    quantize_second,
    scales_shape,
    split,
    split_tile,
)

FORMATS = ("fp32", "fp32_8bit", "split_8bit")
GROUPS = 16
"""Groups a program takes: 16 elements for each of 128 threads, so that 8-bit codes fill a 128-bit access."""
KINDS = ("weight", "remainder", "exp_avg", "exp_avg_sq", "exp_avg_max", "exp_avg_sq_max")
FIELDS = len(KINDS) + 2
"""A row of the table: the address of each kind of tensor (0: there is none), number of elements, of columns."""


class AdamW:
    """AdamW (Loshchilov and Hutter: decoupled decay, bias corrected) over this rank's shards.

    parameters: contiguous tensors on one device, fp32 or, for `split_8bit`, bf16 (the remainders start as 0). They are
    updated in place, and neither they (but for `rebind`) nor the states may move in memory. decays: each one's weight
    decay.
    state: kind ("exp_avg", "exp_avg_sq"; with codes "exp_avg_max", "exp_avg_sq_max"; with split weights
    "remainder") -> a tensor for each parameter, or None where it has none. Codes and remainders have the parameter's
    shape, scales [rows, ceil(columns / 128)], also where a shard is empty. With `steps` (fp32 scalar: the steps that
    were not skipped) that is all a checkpoint needs; loading writes into these tensors.
    Raises ValueError for parameters that do not fit and for a back end that cannot run here.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        decays: Sequence[float],
        *,
        format: str = "fp32",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        backend: str = "auto",
    ):
        _check(parameters, decays, format)
        device = parameters[0].device
        self.backend = resolve(backend, device)
        self.format, self.betas, self.eps = format, betas, eps
        self.parameters = [p.detach() for p in parameters]
        self.decays = torch.tensor(decays, dtype=torch.float32, device=device)
        self.steps = torch.zeros((), dtype=torch.float32, device=device)
        self.state = new_state(self.parameters, format)
        self._betas = torch.tensor(betas, dtype=torch.float64, device=device)
        self._table, self._blocks = _tables(self.parameters, self.state)
        self._addresses: list[int] = []
        self._gradients = torch.empty(0)

    def rebind(self, parameters: Sequence[Tensor]) -> None:
        """The same parameters at other addresses: their owner has moved them. The states stay where they are."""
        self.parameters = [p.detach() for p in parameters]
        self._table, self._blocks = _tables(self.parameters, self.state)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rate: float, divisor: Tensor, skip: Tensor) -> None:
        """One update by `gradient / divisor`; nothing at all changes where `skip` (0.0 or 1.0) is 1.

        gradients: one for each parameter, of its shape, fp32 (bf16 for `split_8bit`); one that is not contiguous is
        copied first. They stay as they are. divisor, skip: fp32 scalars on the device. Raises ValueError where they
        do not fit.
        """
        _check_step(self.parameters, gradients, divisor, skip)
        gradients = [g.contiguous() for g in gradients]
        self.steps += 1.0 - skip
        corrections = bias_corrections(self._betas, self.steps)
        numbers = (float(rate), *(1.0 - beta for beta in self.betas), self.eps)
        scalars = (self.steps, corrections, divisor, skip)
        if self.backend == "reference":
            for i, gradient in enumerate(gradients):
                states = {kind: tensors[i] for kind, tensors in self.state.items() if tensors[i] is not None}
                _reference(i, self.parameters[i], states, gradient, self.decays[i], scalars, numbers)
        else:
            addresses = self._upload([g.data_ptr() for g in gradients])
            _launch(self._table, self._blocks, addresses, self.decays, scalars, numbers, self.format)

    def _upload(self, addresses: list[int]) -> Tensor:
        """The gradients' addresses on the device, int64 [tensors]; in most steps they are those of the step before."""
        if addresses != self._addresses:
            pinned = torch.tensor(addresses, dtype=torch.int64, pin_memory=self.steps.is_cuda)
            self._addresses, self._gradients = addresses, pinned.to(self.steps.device, non_blocking=True)
        return self._gradients


def bias_corrections(betas: Tensor, steps: Tensor) -> Tensor:
    """fp32 [2]: 1 / (1 - beta1^steps) and 1 / sqrt(1 - beta2^steps), right to an ulp.

    betas: fp64 [2]; steps: scalar. In fp32, 1 - 0.999 alone is off by 1e-5 of itself.
    """
    first, second = (1.0 - betas.pow(steps)).reciprocal()
    return torch.stack((first, second.sqrt())).float()


def _check(parameters: Sequence[Tensor], decays: Sequence[float], format: str) -> None:
    if format not in FORMATS:
        raise ValueError(f"unknown optimizer format {format!r}; known: {', '.join(FORMATS)}")
    if not parameters or len(parameters) != len(decays):
        raise ValueError(
            f"{len(parameters)} parameters and {len(decays)} decays: there must be as many, and at least 1"
        )
    dtype = torch.bfloat16 if format == "split_8bit" else torch.float32
    for i, p in enumerate(parameters):
        if p.dtype != dtype or not p.is_contiguous() or p.device != parameters[0].device:
            raise ValueError(
                f"parameter {i} is {p.dtype} with strides {p.stride()} on {p.device}: "
                f"{format} takes contiguous {dtype} on one device"
            )


def _check_step(parameters: Sequence[Tensor], gradients: Sequence[Tensor], divisor: Tensor, skip: Tensor) -> None:
    if len(parameters) != len(gradients):
        raise ValueError(f"{len(gradients)} gradients for {len(parameters)} parameters")
    for i, (p, g) in enumerate(zip(parameters, gradients)):
        # A parameter's gradient has its dtype: FSDP2 sees to that.
        if g.dtype != p.dtype or g.shape != p.shape or g.device != p.device:
            raise ValueError(
                f"gradient {i} is {g.dtype} {tuple(g.shape)} on {g.device}, "
                f"its parameter {p.dtype} {tuple(p.shape)} on {p.device}"
            )
    for name, x in (("divisor", divisor), ("skip", skip)):
        if x.dtype != torch.float32 or x.ndim != 0 or x.device != parameters[0].device:
            raise ValueError(f"{name} must be a fp32 scalar on {parameters[0].device}, not {x.dtype} on {x.device}")


def new_state(parameters: Sequence[Tensor], format: str) -> dict[str, list[Tensor | None]]:
    """`AdamW.state` before the first step."""
    state: dict[str, list[Tensor | None]] = {"exp_avg": [], "exp_avg_sq": []}
    for p in parameters:
        coded = format != "fp32" and p.ndim > 1
        for moment, code in (("exp_avg", torch.int8), ("exp_avg_sq", torch.uint8)):
            state[moment].append(torch.zeros_like(p, dtype=code if coded else torch.float32))
            if format != "fp32":
                scales = p.new_zeros(scales_shape(p.shape), dtype=torch.float32) if coded else None
                state.setdefault(f"{moment}_max", []).append(scales)
    if format == "split_8bit":
        state["remainder"] = [torch.zeros_like(p, dtype=torch.int16) for p in parameters]
    return state


def _tables(parameters: Sequence[Tensor], state: dict[str, list[Tensor | None]]) -> tuple[Tensor, Tensor]:
    """(int64 [tensors, FIELDS]: addresses, elements, columns; int32 [programs, 2]: tensor, block within it)."""
    rows, counts = [], []
    for i, p in enumerate(parameters):
        tensors = [p, *(state[kind][i] if kind in state else None for kind in KINDS[1:])]
        # Without codes there are no groups to keep to: the tensor is one long row.
        coded = state["exp_avg"][i].dtype != torch.float32
        columns = p.shape[-1] if coded else p.numel()
        groups = p.numel() // max(columns, 1) * -(-columns // GROUP)
        rows.append([*(0 if t is None else t.data_ptr() for t in tensors), p.numel(), columns])
        counts.append(-(-groups // GROUPS))
    count = torch.tensor(counts)
    tensor = torch.arange(len(counts)).repeat_interleave(count)
    block = torch.arange(len(tensor)) - (count.cumsum(0) - count).repeat_interleave(count)
    device = parameters[0].device
    return torch.tensor(rows).to(device), torch.stack((tensor, block), 1).to(torch.int32).to(device)


def _reference(number, weight, states, gradient, decay, scalars, numbers) -> None:
    """One parameter's update in plain PyTorch; `number` is its place in the list."""
    steps, (first, second), divisor, skip = scalars
    rate, rest1, rest2, eps = numbers
    rate = torch.full_like(steps, rate)
    g = gradient.float() * divisor.reciprocal()
    coded = "exp_avg_max" in states
    m, v = states["exp_avg"], states["exp_avg_sq"]
    if coded:
        m, v = dequantize(m, states["exp_avg_max"]), dequantize(v, states["exp_avg_sq_max"])
    w = join(weight, states["remainder"]) if "remainder" in states else weight
    m = m + (g - m) * rest1
    v = v + (g * g - v) * rest2
    # torch's fp32 root is off by an ulp on CPUs; the root of the fp64 number, rounded, is the nearest fp32.
    root = v.double().sqrt().float()
    w = w - (w * (rate * decay) + m / (root * second + eps) * (rate * first))
    new = {"weight": w, "exp_avg": m, "exp_avg_sq": v}
    if "remainder" in states:
        new["weight"], new["remainder"] = split(w)
    if coded:
        offsets = dither(v.shape, number, steps)
        new["exp_avg"], new["exp_avg_max"] = quantize_first(m, offsets)
        new["exp_avg_sq"], new["exp_avg_sq_max"] = quantize_second(v, offsets)
    for kind, old in {"weight": weight, **states}.items():
        old.copy_(torch.where(skip > 0, old, new[kind]))


def _launch(table, blocks, gradients, decays, scalars, numbers, format: str) -> None:
    backend.launch(
        _kernel,
        (blocks.shape[0],),
        table,
        blocks,
        gradients,
        decays,
        *scalars,
        *numbers,
        num_warps=4,
        EIGHT_BIT=format != "fp32",
        SPLIT=format == "split_8bit",
    )


_CONSTANTS = (FIELDS, GROUP, GROUPS, GROUPS // 4, 4)
_FIELDS, _GROUP, _GROUPS, _FEW, _PARTS = _CONSTANTS if tl is None else map(tl.constexpr, _CONSTANTS)


@jit
def _kernel(
    table, blocks, gradients, decays, steps, corrections, divisor, skip,
    rate, rest1, rest2, eps, EIGHT_BIT: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    if tl.load(skip) > 0:
        return
    program = tl.cast(tl.program_id(0), tl.int64)
    tensor = tl.load(blocks + 2 * program)
    block = tl.cast(tl.load(blocks + 2 * program + 1), tl.int64)
    row = table + tensor * _FIELDS
    gradient = tl.load(gradients + tensor)
    scale = tl.div_rn(1.0, tl.load(divisor))
    decay = rate * tl.load(decays + tensor)
    move = rate * tl.load(corrections)
    root = tl.load(corrections + 1)
    step = tl.cast(tl.load(steps), tl.int64)
    # All addresses at once: their bitwise or has low bits where one of them has. A missing tensor's address is 0.
    addresses = gradient | tl.load(row) | tl.load(row + 1) | tl.load(row + 2) | tl.load(row + 3)
    aligned = ((addresses | tl.load(row + 6)) & 15) == 0
    # One branch for all threads of a program. Beside codes, fp32 moments are those of small tensors, which need no fast
    # path. The slow path takes few groups at a time, since its addresses take many registers.
    if EIGHT_BIT:
        coded = tl.load(row + 4) != 0
        if coded & aligned & (tl.load(row + 7) % _GROUP == 0):
            _update(row, gradient, tensor, block * _GROUPS, scale, decay, move, root, step,
                    rest1, rest2, eps, True, SPLIT, True, _GROUPS)  # fmt: skip
        elif coded:
            for part in range(_PARTS):
                _update(row, gradient, tensor, block * _GROUPS + part * _FEW, scale, decay, move, root, step,
                        rest1, rest2, eps, True, SPLIT, False, _FEW)  # fmt: skip
        else:
            for part in range(_PARTS):
                _update(row, gradient, tensor, block * _GROUPS + part * _FEW, scale, decay, move, root, step,
                        rest1, rest2, eps, False, SPLIT, False, _FEW)  # fmt: skip
    else:
        if aligned:
            _update(row, gradient, tensor, block * _GROUPS, scale, decay, move, root, step,
                    rest1, rest2, eps, False, SPLIT, True, _GROUPS)  # fmt: skip
        else:
            for part in range(_PARTS):
                _update(row, gradient, tensor, block * _GROUPS + part * _FEW, scale, decay, move, root, step,
                        rest1, rest2, eps, False, SPLIT, False, _FEW)  # fmt: skip


@jit
def _at(address, first, dtype: tl.constexpr, ALIGNED: tl.constexpr):
    """The address of element `first` of a tensor."""
    pointer = address.to(tl.pointer_type(dtype))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer + first


@jit
def _update(
    row, gradient, tensor, first_group, scale, decay, move, root, step, rest1, rest2, eps,
    CODED: tl.constexpr, SPLIT: tl.constexpr, ALIGNED: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Updates COUNT groups of a tensor from `first_group` on. Places are int32, relative to the first group's start."""
    elements = tl.load(row + 6)
    columns = tl.load(row + 7)
    group = tl.arange(0, COUNT)
    lane = tl.arange(0, _GROUP)
    if ALIGNED:
        # The groups follow one another in memory.
        first = first_group * _GROUP
        place = group[:, None] * _GROUP + lane[None, :]
        group_mask = group * _GROUP < elements - first
        mask = place < tl.multiple_of(elements - first, 16)
    else:
        per_row = (columns + _GROUP - 1) // _GROUP
        first_line = first_group // per_row
        before = first_group - first_line * per_row
        first = first_line * columns + before * _GROUP
        line = ((before + group) // per_row).to(tl.int32)
        column = ((before + group - line * per_row) * _GROUP)[:, None] + lane[None, :]
        group_mask = first_line + line < elements // columns
        mask = group_mask[:, None] & (column < columns)
        place = ((line * columns)[:, None] + column - before * _GROUP).to(tl.int32)

    if SPLIT:
        weight_at = _at(tl.load(row), first, tl.int16, ALIGNED) + place
        remainder_at = _at(tl.load(row + 1), first, tl.int16, ALIGNED) + place
        w = join_tile(tl.load(weight_at, mask, 0), tl.load(remainder_at, mask, 0))
        gradient_at = _at(gradient, first, tl.int16, ALIGNED) + place
        g = join_tile(tl.load(gradient_at, mask, 0), tl.zeros([COUNT, _GROUP], tl.int16))
    else:
        weight_at = _at(tl.load(row), first, tl.float32, ALIGNED) + place
        w = tl.load(weight_at, mask, 0.0)
        g = tl.load(_at(gradient, first, tl.float32, ALIGNED) + place, mask, 0.0)
    if CODED:
        m_at = _at(tl.load(row + 2), first, tl.int8, ALIGNED) + place
        v_at = _at(tl.load(row + 3), first, tl.uint8, ALIGNED) + place
        m_scale_at = _at(tl.load(row + 4), first_group, tl.float32, False) + group
        v_scale_at = _at(tl.load(row + 5), first_group, tl.float32, False) + group
        m = decode_first_tile(tl.load(m_at, mask, 0), tl.load(m_scale_at, group_mask, 0.0))
        v = decode_second_tile(tl.load(v_at, mask, 0), tl.load(v_scale_at, group_mask, 0.0))
    else:
        m_at = _at(tl.load(row + 2), first, tl.float32, ALIGNED) + place
        v_at = _at(tl.load(row + 3), first, tl.float32, ALIGNED) + place
        m = tl.load(m_at, mask, 0.0)
        v = tl.load(v_at, mask, 0.0)

    g = g * scale
    m = m + (g - m) * rest1
    v = v + (g * g - v) * rest2
    w = w - (w * decay + m / (tl.sqrt(v) * root + eps) * move)

    if SPLIT:
        high, low = split_tile(w)
        tl.store(weight_at, high, mask)
        tl.store(remainder_at, low, mask)
    else:
        tl.store(weight_at, w, mask)
    if CODED:
        offsets = dither_tile(place, first, step, tensor)
        code, m_scale = encode_first_tile(m, offsets)
        tl.store(m_at, code, mask)
        tl.store(m_scale_at, m_scale, group_mask)
        code, v_scale = encode_second_tile(v, offsets)
        tl.store(v_at, code, mask)
        tl.store(v_scale_at, v_scale, group_mask)
    else:
        tl.store(m_at, m, mask)
        tl.store(v_at, v, mask)
