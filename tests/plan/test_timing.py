"""The roofline: by hand in cases where one thing counts, its limits, and the choice of what layers hold."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from skytrain import flops
from skytrain.activations import Policy
from skytrain.config_rules import OPERATIONS
from skytrain.flops import recomputed_flops
from skytrain.plan import hardware
from skytrain.plan.choice import choose, fits, rank
from skytrain.plan.hardware import Efficiency
from skytrain.plan.memory import Setting, Sharding, plan_memory
from skytrain.plan.timing import KINDS, Pace, plan_counts, plan_timing
from skytrain.plan.workload import Packed, known_models

LARGE = known_models()["qwen2.5-32b"]
H100 = hardware.find("h100-80gb")
FULL = Setting(LARGE, Sharding(8), "fp32_8bit", (Policy(),) * 64, 16384)
# Two steps of two micro-batches on 8 ranks.
TOKENS = np.full((4, 8), 16000.0)
PACKED = Packed(TOKENS, TOKENS * 6000, 2, 1.0, 2)


def only(**rates):
    """A device with these rates, and no limit to the others."""
    fast = {"memory": 1.0, "link": 1.0, "network": 1.0, "host_link": 1.0, "host_memory": 1.0}
    efficiency = Efficiency(
        **(dict.fromkeys(("matmul", "attention"), 1e9) | dict.fromkeys(fast, 1e9) | rates), source=""
    )
    return msgspec.structs.replace(H100, efficiency=efficiency)


def seconds(device, s=FULL, packed=PACKED):
    return plan_timing(s, device, packed)


def test_products_and_attention_take_the_model_s_flops():
    """With nothing done again the hardware's FLOPs are the model's, but for attention's backward: 7 products, not 6."""
    s = replace(FULL, policies=(None,) * 64)
    linear, quadratic = flops.flop_coefficients(LARGE)
    peak, step_tokens = 989.4e12, 2 * 16000.0
    t = seconds(only(matmul=0.5), s)
    assert t.step == pytest.approx(linear * step_tokens / (0.5 * peak), rel=1e-4)
    t = seconds(only(attention=0.5), s)
    assert t.step == pytest.approx(7 / 6 * quadratic * step_tokens * 6000 / (0.5 * peak), rel=1e-4)
    assert t.hours == pytest.approx(2 * t.step / 3600)
    assert t.tokens_per_s == pytest.approx(8 * step_tokens / t.step)
    assert t.mfu == pytest.approx(0.5 * 6 / 7 * quadratic * 6000 / (quadratic * 6000) * (1 + linear / quadratic / 6000))


def test_float8_speeds_up_the_layers_products_and_casts_their_operands():
    """The head's stay. By hand for 32B: a layer's operands are h, q, h, I wide, its results q + 2 k, h, 2 I, h."""
    policies = (None,) * 64
    wide = Setting(LARGE, Sharding(1), "fp32_8bit", policies, 16384)
    narrow = replace(wide, float8="tensorwise")
    peak = H100.fp8_tflops * 1e12
    head = 6 * LARGE.vocab_size * LARGE.hidden_size
    layers = flops.flop_coefficients(LARGE)[0] - head
    device = only(matmul=0.5, float8_tensorwise=0.25)
    expected = 32000 * (layers / (0.25 * peak) + head / (0.5 * 989.4e12))
    assert seconds(device, narrow).step == pytest.approx(expected, rel=1e-4)
    device = only(memory=0.5, float8_tensorwise=1e9)
    inputs, outputs = 5120 + 5120 + 5120 + 27648, 5120 + 2 * 1024 + 5120 + 2 * 27648 + 5120
    parameters = LARGE.hidden_size * (2 * 5120 + 2 * 1024) + 3 * 5120 * 27648 + 5120 + 2 * 1024 + 2 * 5120
    moved = 32000 * (10 * inputs + 6 * outputs) + 2 * 10 * parameters  # two micro-batches a step
    more = seconds(device, narrow).step - seconds(device, wide).step
    assert more == pytest.approx(64 * moved / (0.5 * 3352e9), rel=1e-4)


def test_what_is_done_again_is_counted_once():
    linear, quadratic = recomputed_flops(LARGE, Policy())
    again = 64 * (linear * 32000 + quadratic * 32000 * 6000)
    assert plan_counts(FULL, PACKED).recomputed == pytest.approx(again)
    assert plan_counts(replace(FULL, policies=(Policy(frozenset(OPERATIONS)),) * 64), PACKED).recomputed == 0
    assert plan_counts(replace(FULL, policies=(None,) * 64), PACKED).recomputed == 0
    assert seconds(H100).kinds["recomputation"] > 64 * linear * 32000 / H100.matmul_rate


def test_communication_hides_under_computing_and_sets_the_pace_where_it_is_longer():
    assert seconds(H100).kinds["communication"] < 0.01 * seconds(H100).step
    alone = seconds(only(link=0.5))
    # Of a micro-batch: 7/8 of all weights in bf16, of all layers' but the last's once more, of all gradients in fp32.
    total, layer, table = 32.76e9, 487.7e6, 778.6e6
    gathered, reduced = 2 * 7 / 8 * 2 * (2 * total - 2 * table - layer), 2 * 7 / 8 * 4 * total
    assert alone.step == pytest.approx((gathered + reduced) / (0.5 * 450e9), rel=0.001)
    received = plan_counts(FULL, PACKED)
    assert (received.gathered, received.reduced) == pytest.approx((gathered, reduced), rel=0.001)
    narrow = plan_counts(replace(FULL, sharding=Sharding(8, reduce_itemsize=2)), PACKED)
    assert narrow.reduced == pytest.approx(2 * 7 / 8 * (2 * total + 2 * table), rel=0.001)
    one = replace(FULL, sharding=Sharding(1))
    assert plan_counts(one, PACKED).gathered == 0
    assert seconds(only(link=1e-9), one).step < seconds(alone_device := only(link=0.5)).step
    assert alone_device.link_rate(16) == alone_device.network_rate


def test_replicas_add_the_network():
    within = plan_timing(FULL, H100, PACKED).kinds["communication"]
    slow = msgspec.structs.replace(H100, network_gbs=1.0)
    assert plan_timing(FULL, slow, PACKED, replicas=2).kinds["communication"] > within + 1


def test_offloaded_values_are_exposed_where_they_are_slower_than_computing():
    moved = replace(FULL, policies=(Policy(offload=frozenset({"input"})),) * 64)
    assert seconds(H100, moved).kinds["offload"] == 0
    slow = msgspec.structs.replace(H100, host_link_gbs=1.0)
    a_step = 2 * 16000 * 64 * 10240
    exposed = seconds(slow, moved).kinds["offload"]
    assert 0 < exposed < 2 * a_step / slow.offload_rate
    alone = seconds(only(host_link=0.01), moved)
    assert alone.step == pytest.approx(2 * a_step / (0.01 * 64e9), rel=0.01)
    assert plan_counts(moved, PACKED).offloaded == pytest.approx(a_step)


def test_the_slowest_rank_sets_the_pace():
    uneven = TOKENS.copy()
    uneven[:, 0] *= 1.1
    balanced, waited = seconds(H100), seconds(H100, packed=Packed(uneven, uneven * 6000, 2, 1.0, 2))
    assert balanced.kinds["waiting"] == 0
    assert waited.step == pytest.approx(1.1 * balanced.step, rel=0.02)
    assert set(waited.kinds) == set(KINDS)


def test_the_optimizer_moves_its_format_s_bytes():
    """Each state read and written once, and the gradient twice read (once for the norm)."""
    for format, traffic in (("fp32", 32), ("fp32_8bit", 20.1), ("split_8bit", 16.1)):
        assert Pace(replace(FULL, format=format), H100).optimizer() == pytest.approx(
            traffic * 32.76e9 / 8 / H100.memory_rate, rel=0.01
        )
    host = Pace(replace(FULL, format="host"), H100).optimizer()
    assert host == pytest.approx(32 * 32.76e9 / 8 / H100.host_memory_rate, rel=0.01)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("gigabytes", [64, 72, 80, 400])
def test_a_choice_keeps_the_budget_and_is_no_slower_than_simple_ones(gigabytes, compiled):
    budget = int(gigabytes * 1e9)
    found = choose(FULL, budget, PACKED, H100, compiled=compiled)
    if found is None:
        assert plan_memory(FULL).total > budget
        return
    assert fits(FULL, found, budget)
    taken = seconds(H100, replace(FULL, policies=found)).step
    for simple in (None, Policy(), Policy(frozenset({"attention"})), Policy(offload=frozenset({"input"}))):
        if fits(FULL, (simple,) * 64, budget):
            assert taken <= seconds(H100, replace(FULL, policies=(simple,) * 64)).step
    for policy in found:
        assert policy is None or not policy.keep & policy.offload
        if compiled and policy is not None:
            assert not (policy.keep and policy.offload - {"input"})
    assert gigabytes < 400 or found == (None,) * 64


def test_without_rates_the_fewest_flops_are_done_again_and_nothing_is_offloaded():
    found = choose(FULL, int(90e9), PACKED, None, compiled=False)
    assert fits(FULL, found, int(90e9))
    assert not any(policy.offload for policy in found)
    assert any(policy.keep for policy in found)
    assert choose(FULL, int(20e9), PACKED, None, compiled=False) is None


def test_attention_saves_most_a_byte_in_long_documents_and_least_in_short_ones():
    assert rank(FULL, PACKED, H100)[0] == "attention"
    short = Packed(TOKENS, TOKENS * 100, 2, 1.0, 2)
    assert rank(FULL, short, H100)[-1] == "attention"
