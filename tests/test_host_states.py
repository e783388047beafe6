"""Masters and moments in host memory: a step in parts is one step of AdamW, whatever the parts."""

import pytest
import torch

from skytrain.host_states import FORMATS, HostStates, _parts
from skytrain.kernels.adamw import AdamW

SHAPES = [(17, 128), (7, 130), (0, 128), (5,), (300, 256), (129,), (4, 700)]
KINDS = {"host": "fp32", "host_8bit": "fp32_8bit"}


def start(format: str, part: int) -> HostStates:
    parameters = [torch.zeros(shape, dtype=torch.bfloat16) for shape in SHAPES]
    states = HostStates(parameters, [0.1] * len(SHAPES), format=format, betas=(0.9, 0.95), eps=1e-6, part=part)
    g = torch.Generator().manual_seed(0)
    for master in states.masters:
        master.normal_(generator=g)
    states.refresh()
    return states


def gradients(seed: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g).bfloat16() for shape in SHAPES]


@pytest.mark.parametrize("part", [1, 4000, 2**26], ids=["a tensor each", "several", "one"])
@pytest.mark.parametrize("format", FORMATS)
def test_a_step_in_parts_is_a_step(format, part):
    """Three steps, the second skipped, against the reference; the parameters are the masters, rounded."""
    states = start(format, part)
    weights = [master.clone() for master in states.masters]
    reference = AdamW(
        weights, [0.1] * len(SHAPES), format=KINDS[format], betas=(0.9, 0.95), eps=1e-6, backend="reference"
    )
    for step in range(3):
        divisor, skip = torch.tensor(1.0 + step), torch.tensor(float(step == 1))
        before = [p.clone() for p in states.parameters]
        states.step(gradients(step), 1e-2, divisor, skip)
        reference.step([g.float() for g in gradients(step)], 1e-2, divisor, skip)
        assert (step == 1) == all(map(torch.equal, before, states.parameters))
    assert states.steps == reference.steps == 2
    for kind, tensors in {**reference.state, "weight": weights}.items():
        ours = states.masters if kind == "weight" else states.state[kind]
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(ours, tensors, strict=True)), kind
    assert all(torch.equal(p, w.bfloat16()) for p, w in zip(states.parameters, weights, strict=True))


def test_parameters_that_moved_get_the_new_weights():
    states = start("host", 4000)
    moved = [p.clone() for p in states.parameters]
    states.rebind(moved)
    states.step(gradients(0), 1e-2, torch.ones(()), torch.zeros(()))
    assert all(torch.equal(p, master.bfloat16()) for p, master in zip(moved, states.masters, strict=True))


def test_parts_are_consecutive_and_hold_every_tensor_once():
    assert _parts([3, 3, 9, 0, 1, 5], 6) == [range(0, 2), range(2, 3), range(3, 6)]
    assert _parts([9], 6) == [range(0, 1)]
    assert _parts([0, 0], 6) == [range(0, 2)]
