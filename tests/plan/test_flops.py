"""The plan's FLOPs are those that torch's counter sees in a real step, attention a document at a time."""

import numpy as np
import pytest
import torch
from flop_formulas import formulas
from tiny_models import write_tiny_model
from torch.utils.flop_counter import FlopCounterMode

from skytrain import activations
from skytrain.activations import Policy
from skytrain.config_rules import OPERATIONS
from skytrain.flops import model_flops, recomputed
from skytrain.hf import read_config
from skytrain.model import Backends, CausalLM

LENGTHS = np.array([5, 1, 40, 17])


def count(folder, dtype, policies: list[Policy | None] | None = None) -> int:
    """FLOPs of forward and backward of a row of LENGTHS, each of whose tokens is a target."""
    with torch.device("meta"):
        model = CausalLM(read_config(folder), Backends("reference", "reference", 1 << 14, torch.float32))
    model.to(dtype).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.02)
    if policies:
        activations.apply(model, policies, tokens=int(LENGTHS.sum()))
    bounds = torch.tensor([0, *LENGTHS.cumsum()], dtype=torch.int32)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    tokens = torch.arange(len(positions))
    with FlopCounterMode(display=False, custom_mapping=formulas()) as counter:
        model(tokens, positions, bounds, int(LENGTHS.max()), tokens, tokens).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama3"])
def test_the_models_flops_are_the_counted_ones(tmp_path, family, dtype):
    folder = write_tiny_model(tmp_path / "model", family)
    assert count(folder, dtype) == model_flops(read_config(folder), LENGTHS)


POLICIES = [
    Policy(),
    Policy(frozenset({"attention"})),
    Policy(frozenset({"qkv", "up"})),
    Policy(frozenset({"o_proj", "gate"}), frozenset({"input", "attention"})),
    Policy(frozenset(OPERATIONS)),
]


@pytest.mark.parametrize(
    "policy", POLICIES, ids=lambda policy: "+".join(sorted(policy.keep | policy.offload)) or "none"
)
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_backward_does_again_what_the_plan_says(tmp_path, family, policy):
    folder = write_tiny_model(tmp_path / "model", family)
    config = read_config(folder)
    policies = [policy] * (config.num_hidden_layers - 1) + [None]
    again = count(folder, torch.float32, policies) - count(folder, torch.float32)
    assert again == recomputed(config, policies, LENGTHS)
