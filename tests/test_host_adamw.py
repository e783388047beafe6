from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from skytrain.errors import UserError
from skytrain.host_adamw import STATES, HostAdamW, instruction_sets
from skytrain.kernels.adamw import AdamW

ONE, ZERO = torch.ones(()), torch.zeros(())
# Whole groups, part groups, one row, three dimensions, vectors, empty tensors, a scalar; lengths about a group's.
SHAPES = [(17, 128), (3, 256), (7, 130), (1, 1), (2, 3, 40), (4, 700), (0, 128), (0,), (), (1,), (127,), (128,), (129,)]
SHAPES += [(5000,)] * 3
# Several blocks for each of two threads.
LARGE = [(3, 700), (130, 1030), (5,), (300, 256)]
DTYPES = (torch.float32, torch.bfloat16)


def unaligned(x: Tensor) -> Tensor:
    """A contiguous copy whose address is no multiple of a vector's size."""
    return x.new_empty(x.numel() + 1)[1:].copy_(x.flatten()).view(x.shape)


def randn(shapes, seed: int, dtype=torch.float32) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    # Scales from 1e-6 to 1e2 within a tensor, so that codes of all sizes occur.
    return [(torch.randn(s, generator=g) * 10 ** (8 * torch.rand(s, generator=g) - 6)).to(dtype) for s in shapes]


def decays(shapes) -> list[float]:
    return [0.1 * (len(s) > 1) for s in shapes]


def everything(optimizer: HostAdamW | AdamW) -> dict[str, Tensor]:
    weights = optimizer.masters if isinstance(optimizer, HostAdamW) else optimizer.parameters
    tensors = {"weight": weights, **optimizer.state}
    named = {f"{kind} {i}": t for kind, ts in tensors.items() for i, t in enumerate(ts) if t is not None}
    return {name: t.clone() for name, t in {**named, "steps": optimizer.steps}.items()}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """To the bit, but for the payload of NaNs."""
    assert ours.keys() == theirs.keys()
    for name, a in ours.items():
        torch.testing.assert_close(a, theirs[name], rtol=0, atol=0, equal_nan=True, msg=lambda m: f"{name}: {m}")


def run(format: str, isa: str | None = None, shapes=SHAPES, dtype=torch.float32, move=lambda x: x) -> HostAdamW:
    """Four steps, the second of them skipped."""
    optimizer = HostAdamW(
        [move(p) for p in randn(shapes, 0)], decays(shapes), format=format, betas=(0.9, 0.95), eps=1e-6, isa=isa
    )
    for kind, tensors in optimizer.state.items():
        optimizer.state[kind][:] = [t if t is None else move(t) for t in tensors]
    for step in range(4):
        gradients = [move(g) for g in randn(shapes, 1 + step, dtype)]
        optimizer.step(gradients, 1e-2, torch.tensor(1.0 + step / 3), torch.tensor(float(step == 1)))
    return optimizer


def run_reference(format: str, shapes=SHAPES, dtype=torch.float32) -> AdamW:
    optimizer = AdamW(
        randn(shapes, 0), decays(shapes), format=STATES[format], betas=(0.9, 0.95), eps=1e-6, backend="reference"
    )
    for step in range(4):
        gradients = [g.float() for g in randn(shapes, 1 + step, dtype)]
        optimizer.step(gradients, 1e-2, torch.tensor(1.0 + step / 3), torch.tensor(float(step == 1)))
    return optimizer


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", STATES)
def test_equals_the_reference(format, dtype, isa):
    assert_same(everything(run(format, isa, dtype=dtype)), everything(run_reference(format, dtype=dtype)))


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("format", STATES)
def test_alignment_changes_nothing(format, isa):
    assert_same(everything(run(format, isa, move=unaligned)), everything(run_reference(format)))


@pytest.mark.parametrize("format", STATES)
def test_threads_change_nothing(format):
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(everything(run(format, shapes=LARGE)))
    finally:
        torch.set_num_threads(before)
    assert_same(*results)
    assert_same(results[0], everything(run_reference(format, LARGE)))


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("format", STATES)
def test_weights_out_are_rounded_as_torch_does(format, isa):
    """Any bits of a weight; a rate of 0 leaves finite weights as they are."""
    g = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (40, 1001), generator=g).int()
    bits[0, :8] = torch.tensor([0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7FC00001, 0x7F800001, -1, 0x7F800000, 0x8000])
    weight = bits.view(torch.float32)
    optimizer = HostAdamW([weight.clone()], [0.0], format=format, isa=isa)
    out = unaligned(torch.zeros_like(weight, dtype=torch.bfloat16))
    optimizer.step([torch.ones_like(weight)], 0.0, ONE, ZERO, [out])
    now = optimizer.masters[0]
    finite = weight.isfinite()
    assert torch.equal(now[finite], weight[finite]) and now[~finite].isnan().all()
    assert torch.equal(out.view(torch.int16)[finite], weight[finite].bfloat16().view(torch.int16))
    assert out[~finite].isnan().all()


@pytest.mark.parametrize("format", STATES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_out_are_the_new_ones(format, dtype):
    optimizer = HostAdamW(randn(SHAPES, 0), decays(SHAPES), format=format)
    out = [torch.zeros(s, dtype=torch.bfloat16) for s in SHAPES]
    optimizer.step(randn(SHAPES, 1, dtype), 1e-2, ONE, ZERO, out)
    for w, o in zip(optimizer.masters, out):
        assert torch.equal(o, w.bfloat16())


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("format", STATES)
def test_non_finite_numbers_go_where_the_reference_puts_them(format, isa):
    """The trainer skips such steps; here they only must not reach other groups, or be undefined."""
    shapes = [(3, 300), (200,)]
    results = []
    for kind in (HostAdamW, AdamW):
        weights, gradients = randn(shapes, 0), randn(shapes, 1)
        for tensors, values in ((weights, (torch.nan, torch.inf)), (gradients, (torch.nan, -torch.inf))):
            for t in tensors:
                t.view(-1)[[5, 140]] = torch.tensor(values)
        options = {"isa": isa} if kind is HostAdamW else {"backend": "reference"}
        optimizer = kind(weights, [0.1, 0.0], format=format if kind is HostAdamW else STATES[format], **options)
        for _ in range(2):
            optimizer.step(gradients, 1e-2, ONE, ZERO)
        results.append(everything(optimizer))
    assert_same(*results)


@pytest.mark.parametrize("isa", instruction_sets())
def test_codes_of_numbers_about_a_code(isa):
    """Where roots are guessed, these are numbers for which a guess will not do; all codes, and zeros beside them."""
    powers = (torch.arange(256, dtype=torch.float64) / 255) ** 8
    near = (powers[:, None] * (1 + torch.arange(-8, 9) * 2.0**-22)).clamp_max(1).float().flatten()
    rows = torch.zeros(-(-len(near) // 127), 128)
    rows[:, 0] = 1  # the group's largest
    rows[:, 1:] = torch.nn.functional.pad(near, (0, 127 * len(rows) - len(near))).view(-1, 127)
    gradients = [rows.sqrt()]
    results = []
    for kind, options in ((HostAdamW, {"format": "8bit", "isa": isa}), (AdamW, {"format": "fp32_8bit"})):
        optimizer = kind([torch.zeros_like(rows)], [0.0], betas=(0.0, 0.0), **options)
        for _ in range(3):
            optimizer.step(gradients, 1e-2, ONE, ZERO)
        results.append(everything(optimizer))
    assert_same(*results)
    assert results[0]["exp_avg_sq 0"].unique().numel() == 256


@pytest.mark.parametrize("format", STATES)
def test_a_skipped_step_changes_nothing(format):
    optimizer = run(format)
    before = everything(optimizer)
    gradients, out = randn(SHAPES, 9), [torch.zeros(s, dtype=torch.bfloat16) for s in SHAPES]
    given = [g.clone() for g in gradients]
    optimizer.step(gradients, 1e-2, torch.tensor(torch.nan), ONE, out)
    assert_same(everything(optimizer), before)
    assert all(not o.any() for o in out)
    optimizer.step(gradients, 1e-2, ONE, ZERO, out)
    assert optimizer.steps == before["steps"] + 1
    assert all(map(torch.equal, gradients, given)), "gradients are read only"


@pytest.mark.parametrize("format", STATES)
def test_bytes_a_parameter(format):
    optimizer = HostAdamW([torch.zeros(64, 1024)], [0.0], format=format)
    held = sum(t.nbytes for ts in (optimizer.masters, *optimizer.state.values()) for t in ts)
    assert held / (64 * 1024) == {"fp32": 12, "8bit": 6.0625}[format]


def test_what_does_not_fit_is_refused_before_anything_changes():
    shapes = [(4, 8), (3,)]
    optimizer = HostAdamW(randn(shapes, 0), [0.1, 0.0])
    before = everything(optimizer)
    good, out = randn(shapes, 1), [torch.zeros(s, dtype=torch.bfloat16) for s in shapes]

    def refused(words: str, gradients=good, divisor=ONE, skip=ZERO, out=out, error=RuntimeError) -> None:
        with pytest.raises(error, match=words):
            optimizer.step(gradients, 1e-2, divisor, skip, out)
        assert_same(everything(optimizer), before)

    refused("1 gradients for 2 masters", good[:1], error=ValueError)
    refused("2 weights, but a list of 1", out=out[:1])
    refused("gradient 1 is .*Half", [good[0], good[1].half()])
    refused(r"gradient 1 is .*\[4\]", [good[0], torch.zeros(4)])
    refused("gradient 0 is .*strides", [torch.zeros(8, 4).t(), good[1]])
    refused("gradient 0 is on meta", [good[0].to("meta"), good[1]], error=ValueError)
    refused("out 1 is float", out=[out[0], out[1].float()])
    refused("scalars", divisor=torch.ones(2))
    refused("scalars", skip=ZERO.double())


def test_masters_that_do_not_fit():
    with pytest.raises(ValueError, match=r"master 0 is torch\.bfloat16"):
        HostAdamW([torch.zeros(4, dtype=torch.bfloat16)], [0.0])
    with pytest.raises(ValueError, match="strides"):
        HostAdamW([torch.zeros(4, 3).t()], [0.0])
    with pytest.raises(ValueError, match="1 masters and 2 decays"):
        HostAdamW([torch.zeros(4)], [0.0, 0.0])
    with pytest.raises(ValueError, match="unknown format"):
        HostAdamW([torch.zeros(4)], [0.0], format="4bit")


def test_unknown_instruction_set():
    optimizer = HostAdamW([torch.zeros(4)], [0.0], isa="mmx")
    with pytest.raises(RuntimeError, match="does not run mmx"):
        optimizer.step([torch.zeros(4)], 1e-2, ONE, ZERO)
    assert optimizer.steps == 0


def test_without_the_extension(monkeypatch):
    monkeypatch.setitem(sys.modules, "skytrain._C", None)
    with pytest.raises(UserError, match="not built here"):
        HostAdamW([torch.zeros(4)], [0.0])
