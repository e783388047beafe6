"""The plan's FLOPs are those that torch's counter sees in a real step, attention a document at a time."""

import functools

import numpy as np
import pytest
import torch
from flop_formulas import formulas
from tiny_models import write_tiny_model
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from skytrain.activations import Policy
from skytrain.flops import model_flops
from skytrain.hf import read_config
from skytrain.model import Backends, CausalLM
from skytrain.plan.timing import recomputed_flops

LENGTHS = np.array([5, 1, 40, 17])


def count(folder, dtype, *, full: bool = False) -> int:
    """FLOPs of forward and backward of a row of LENGTHS, each of whose tokens is a target."""
    with torch.device("meta"):
        model = CausalLM(read_config(folder), Backends("reference", "reference", 1 << 14, torch.float32))
    model.to(dtype).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.02)
    if full:
        for layer in model.model.layers:
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
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


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_full_recomputation_does_again_what_the_plan_says(tmp_path, family):
    folder = write_tiny_model(tmp_path / "model", family)
    config = read_config(folder)
    products, squared = recomputed_flops(config, Policy())
    again = config.num_hidden_layers * (products * LENGTHS.sum() + squared * np.square(LENGTHS).sum())
    assert count(folder, torch.float32, full=True) - count(folder, torch.float32) == again
