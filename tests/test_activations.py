"""What a layer keeps, recomputes or moves to the host changes memory and time, and no bit of the gradients."""

from pathlib import Path

import pytest
import runs
import torch
from ranks import run_ranks
from tiny_models import VOCAB_SIZE, write_tiny_model

from skytrain import parallel

FAMILIES = {"untied": ("qwen2", False), "tied": ("qwen3", True)}
"""Biases, and an untied head; norms of queries and keys, and a tied one."""

POLICIES = {
    "full": ([], []),
    **{f"keep {name}": ([name], []) for name in ("attention", "qkv", "o_proj", "gate", "up")},
    "keep all": (["attention", "qkv", "o_proj", "gate", "up"], []),
    "offload input": ([], ["input"]),
    "offload many": (["qkv"], ["input", "attention", "gate", "up"]),
    "offload all": ([], ["input", "attention", "qkv", "o_proj", "gate", "up"]),
}


def options(policy: str) -> dict:
    keep, offload = POLICIES[policy]
    return {
        "activations__checkpoint": "selective",
        "activations__keep": keep,
        "activations__offload": offload,
        "batch__documents": 6,
        "batch__max_tokens": 80,
    }


@pytest.fixture(scope="module", params=FAMILIES)
def inputs(request, tmp_path_factory) -> tuple[Path, Path]:
    family, tied = FAMILIES[request.param]
    root = tmp_path_factory.mktemp("inputs")
    model = write_tiny_model(root / "model", family, tied=tied, num_hidden_layers=3)
    return model, runs.write_data(root / "data", runs.random_documents(18, vocab=VOCAB_SIZE), model)


def train(c, count: int) -> tuple[list[dict], int, int]:
    """Steps, and bytes to and from the host."""
    run = runs.start(c)
    seen = runs.steps(run, count)
    run.feed.close()
    return seen, *((0, 0) if run.host is None else (run.host.bytes_out, run.host.bytes_in))


def train_all(configs: dict) -> dict:
    return {name: train(c, 3) for name, c in configs.items()}


def same_bits(got: list[dict], expected: list[dict]) -> None:
    for a, b in zip(got, expected, strict=True):
        assert a["loss"] == b["loss"] and a["norm"] == b["norm"]
        assert all(torch.equal(a["gradients"][name], b["gradients"][name]) for name in b["gradients"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_no_policy_changes_a_bit(inputs, ranks, dtype, tmp_path):
    """Three steps of several micro-batches each, with FSDP2."""
    common = {"train__dtype": dtype}
    configs = {
        "none": runs.settings(*inputs, tmp_path / "none", batch__documents=6, batch__max_tokens=80, **common),
        **{name: runs.settings(*inputs, tmp_path / name, **options(name), **common) for name in POLICIES},
    }
    for results in run_ranks(ranks, train_all, configs, process_group=False):
        expected, *moved = results.pop("none")
        assert expected[0]["micro_batches"] > 1 or ranks == 2
        assert moved == [0, 0]
        for name, (steps, out, back) in results.items():
            same_bits(steps, expected)
            assert (out > 0) == name.startswith("offload"), name
            assert out == back
