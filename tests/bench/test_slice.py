"""The slice: its parts run, and the node's step is what they add up to by hand."""

import functools
import math

import msgspec
import node
import numpy as np
import pytest
import record
import slice as parts_bench
import torch
from node import Parts, compose

from skytrain import flops
from skytrain.activations import Policy
from skytrain.plan import hardware
from skytrain.plan.memory import Setting, Sharding, state_bytes
from skytrain.plan.workload import Packed, drawn_lengths, known_models

LARGE = known_models()["qwen2.5-32b"]
H100 = hardware.find("h100-80gb")
PARTS = Parts(16384, 16384 * 6770, forward=0.025, backward=0.065, head=0.12, embedding=0.002, optimizer=0.03)
OFFLOAD = Policy(offload=frozenset({"attention", "o_proj", "up"}))
# By hand: the parameters of a layer (products, biases, norms) and of the embedding.
LAYER = 5120 * (2 * 5120 + 2 * 1024) + 3 * 5120 * 27648 + (5120 + 2 * 1024) + 2 * 5120
TABLE = 152_064 * 5120


def device(link=1e6, host=1e6):
    """With these rates in GB/s, and copies in no time."""
    whole = {"memory": 1.0, "link": 1.0, "host_link": 1.0, "host_memory": 1.0}
    rates = {"link_gbs": link, "host_link_gbs": host, "host_memory_gbs": host, "memory_gbs": 1e12}
    return msgspec.structs.replace(H100, **rates, efficiency=msgspec.structs.replace(H100.efficiency, **whole))


def step(policy=Policy(), tokens=None, **rates):  # noqa: B008
    tokens = np.full((2, 8), 16384.0) if tokens is None else tokens
    s = Setting(LARGE, Sharding(8), "fp32_8bit", (policy,) * 64, 16384)
    return compose(PARTS, s, device(**rates), Packed(tokens, tokens * 6770, 1, 1.0, 2))


def received(size, gbs):
    """Seconds for the other 7 ranks' parts."""
    return 7 / 8 * size / (gbs * 1e9)


def test_parts_add_up_where_all_communication_is_hidden():
    t = step(link=360)
    embedding_link = received(TABLE * (2 + 4), 360)
    assert t.kinds["communication"] == pytest.approx(2 * embedding_link)
    by_hand = 2 * (64 * (0.025 + 0.065) + 0.12 + 0.002 + embedding_link) + 0.03
    assert t.step == pytest.approx(by_hand, rel=1e-6)
    assert t.hours == pytest.approx(by_hand / 3600)
    linear, quadratic = flops.flop_coefficients(LARGE)
    work = 2 * 8 * 16384 * (linear + quadratic * 6770)
    assert t.mfu == pytest.approx(work / by_hand / 8 / 989.4e12, rel=1e-6)


def test_a_link_slower_than_the_layer_sets_its_pace():
    t = step(link=20)
    forward = received(2 * LAYER, 20)
    backward = received(2 * LAYER * 63 / 64 + 4 * LAYER, 20)
    ends = received(6 * TABLE, 20)
    assert forward > 0.025 and backward > 0.065 and ends > 0.12
    by_hand = 2 * (64 * (forward + backward) + ends + 0.002 + ends) + 0.03
    assert t.step == pytest.approx(by_hand, rel=1e-6)
    assert t.kinds["layers"] == pytest.approx(2 * 64 * 0.09)


def test_moving_to_the_host_slower_than_the_layer_sets_its_pace():
    t = step(OFFLOAD, host=20)
    moved = 16384 * (2 * 5120 + 4 * 40 + 2 * 5120 + 2 * 27648) / 20e9
    assert 0.025 < moved < 0.065
    assert t.kinds["offload"] == pytest.approx(2 * 64 * (moved - 0.025), rel=1e-6)
    assert step(OFFLOAD, host=54).kinds["offload"] == 0


def test_the_slowest_rank_sets_the_pace_of_a_micro_batch():
    full = step()
    tokens = np.full((2, 8), 16384.0)
    tokens[0, 1:] = 8192.0
    t = step(tokens=tokens)
    assert t.step == pytest.approx(full.step)
    assert t.kinds["waiting"] == pytest.approx(7 / 8 * 0.5 * (64 * 0.09 + 0.122))
    assert t.tokens == 8 * 16384 + 16384 + 7 * 8192


def test_model_and_row_are_the_plan_s():
    assert parts_bench.MODEL == LARGE
    for lengths in (parts_bench.LENGTHS, parts_bench.SMALL_LENGTHS):
        tokens = sum(lengths)
        np.testing.assert_allclose(lengths, drawn_lengths(3, tokens // 3, tokens), atol=1)
    assert sum(parts_bench.LENGTHS) == 16384


def test_the_optimizer_s_part_is_one_rank_s_share():
    bench = parts_bench.Slice(small=True, seconds=0)
    bench.model = LARGE
    s = Setting(LARGE, Sharding(8), "fp32", (None,) * 64, 16384)
    assert 4 * sum(map(math.prod, parts_bench.shard_shapes(bench))) == state_bytes(s)["weights"]


def run(monkeypatch):
    def refuse(*_):
        raise AssertionError("small numbers are not recorded")

    monkeypatch.setattr(record, "append", refuse)
    monkeypatch.setattr("sys.argv", ["slice.py", "--small", "--seconds", "0.01"])
    return parts_bench.main()


def test_the_small_form_measures_all_parts_and_puts_them_together(monkeypatch, capsys):
    # The compiler's own code takes a minute to make; bench/h100.sh --dry-run has it.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    assert run(monkeypatch) == 0
    out = capsys.readouterr().out
    for case in ("layer, everything kept", "layer, offload attention, o_proj, up", "head", "embedding", "adamw"):
        assert f"\n{case}" in out
    for format in node.FORMATS:
        assert f"\nnode, {format}, layer, offload attention, o_proj, up\n" in out
    assert "  measured parts " in out
    assert "- bandwidth: not measured; " in out


def fake(bench, case):
    for metric in ("forward", "forward_backward", "forward_backward_median", "step_of_a_rank"):
        bench.add(case, metric, 1.0 if metric == "forward" else 3.0, "ms")


def broken(bench, case):
    raise torch.OutOfMemoryError("CUDA out of memory.\nMuch more about it")


def test_what_fails_is_named_and_the_rest_is_measured(monkeypatch, capsys):
    for part in ("layer", "head", "embedding", "adamw"):
        monkeypatch.setattr(parts_bench, f"measure_{part}", broken if part == "head" else fake)
    reported = []
    monkeypatch.setattr(node, "report", lambda rows, *_: reported.extend(rows) or [])
    assert run(monkeypatch) == 1
    assert "failed: head: OutOfMemoryError: CUDA out of memory.\n" in capsys.readouterr().out
    assert {row["case"] for row in reported} >= {"layer, everything kept", "embedding", "adamw split_8bit"}
    monkeypatch.undo()
    assert node.report(reported, parts_bench.SMALL_MODEL, parts_bench.SMALL_RECIPE) == []
    assert "not put together, ('head', 'forward_backward_median') was not measured" in capsys.readouterr().out


@pytest.mark.parametrize("has_plan", [True, False])
def test_without_the_policy_all_is_recomputed(monkeypatch, capsys, has_plan):
    def layer(bench, case):
        (broken if "offload" in case else fake)(bench, case)

    for part in ("layer", "head", "embedding", "adamw"):
        monkeypatch.setattr(parts_bench, f"measure_{part}", layer if part == "layer" else fake)
    monkeypatch.setattr(parts_bench, "HAS_PLAN", has_plan)
    assert run(monkeypatch) == has_plan
    out = capsys.readouterr().out
    assert ("\nnode, fp32_8bit, layer, full recomputation\n" in out) == has_plan
    assert ("msgspec is not installed" in out) != has_plan
