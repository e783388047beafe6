"""The roofline of servers: by hand, at its bounds, and beside published runs."""

import math
from pathlib import Path

import msgspec
import pytest

from skytrain.errors import UserError
from skytrain.plan import hardware
from skytrain.plan.known import SPREAD, known_shapes, served
from skytrain.plan.memory import parameters
from skytrain.plan.serving import Pool, plan_serving
from skytrain.plan.workload import known_models

LARGE = served("qwen2.5-32b")


@pytest.fixture(autouse=True)
def no_rows_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def device(id: str = "h100-80gb", **efficiency: float) -> hardware.Device:
    row = hardware.find(id)
    return msgspec.structs.replace(row, efficiency=msgspec.structs.replace(row.efficiency, **efficiency))


def pool(**changes) -> Pool:
    settings = {"device": device(), "model": LARGE, "gpus": 8, "tensor_parallel": 4, "max_sequences": 256}
    return Pool(**(settings | {"in_flight": 512} | changes))


@pytest.mark.parametrize("name", known_shapes())
def test_a_served_model_has_the_parameters_of_a_trained_one_but_for_norms_and_biases(name):
    assert served(name).weights == pytest.approx(parameters(known_models()[name]), rel=2e-3)


def test_a_memory_bound_step_by_hand():
    """One sequence: 2 bytes of each weight, and its cache, over the rate of 4 GPUs' memory."""
    one = plan_serving(pool(in_flight=1, gpus=4, device=device(serving=1.0, memory=1.0)), 10, 0, 1000)
    cache = 2 * 2 * 64 * 8 * 128
    context = 1000 * math.exp(SPREAD**2) / 2
    assert LARGE.cache_bytes == cache
    step = (2 * LARGE.products + context * cache) / (4 * 3352e9)
    assert one.tokens_per_s == pytest.approx(1 / step)
    assert (one.batch, one.bound) == (1, "memory")
    assert one.hours == pytest.approx(10 * 1000 * step / 3600)


def test_a_compute_bound_step_by_hand():
    slow = device(serving=1.0, matmul=0.01)
    one = plan_serving(pool(device=slow, in_flight=4096, max_sequences=1000), 10**6, 0, 100)
    assert (one.batch, one.bound) == (1000, "products")
    context = 100 * math.exp(SPREAD**2) / 2
    assert one.tokens_per_s == pytest.approx(8 * slow.matmul_rate / LARGE.token_flops(context))


@pytest.mark.parametrize("changes, requests, batch", [
    ({"max_sequences": 32}, 10_000, 32), ({"in_flight": 60}, 10_000, 30), ({}, 40, 20), ({}, 1, 1),
])  # fmt: skip
def test_what_limits_the_answers_at_a_time(changes, requests, batch):
    assert plan_serving(pool(**changes), requests, 100, 500).batch == batch


def test_memory_limits_the_answers_at_a_time():
    found = pool(in_flight=10_000, max_sequences=10_000)
    context = 400 + 4660 * math.exp(SPREAD**2) / 2
    assert plan_serving(found, 10_000, 400, 4660).batch == int(found.cache_tokens / context)
    by_hand = 4 * (0.9 * 79.1 - 2) * 2**30 - 2 * 32.76e9
    assert found.cache_tokens * LARGE.cache_bytes == pytest.approx(by_hand, rel=1e-3)


def test_prompts_take_time_too_and_the_assumed_part_divides_it():
    whole, part = (plan_serving(pool(device=device(serving=serving)), 100, 8000, 10) for serving in (1.0, 0.25))
    assert whole.hours > plan_serving(pool(device=device(serving=1.0)), 100, 1, 10).hours * 2
    assert part.hours == pytest.approx(4 * whole.hours)


@pytest.mark.parametrize("changes, told", [
    ({"tensor_parallel": 3}, "does not divide the number of GPUs"),
    ({"gpus": 2}, "does not divide the number of GPUs"),
    ({"gpus": 32, "tensor_parallel": 16}, "key-value heads"),
    ({"gpus": 1, "tensor_parallel": 1, "device": device("a100-40gb")}, "no room for the cache"),
    ({"device": device(serving=0.0)}, "no efficiency.serving"),
    ({"device": msgspec.structs.replace(device(), dtype="float32")}, "rates are of float32"),
])  # fmt: skip
def test_what_cannot_be_served_is_refused(changes, told):
    with pytest.raises(UserError, match=told):
        plan_serving(pool(**changes), 10, 10, 10)


PUBLISHED = [  # (gpu, model, GPUs, in flight, requests, prompt, completion, output tokens/s): the source of `serving`
    ("a100-80gb", "qwen3-32b", 1, 1000, 1000, 217, 201, 832),
    ("a100-80gb", "qwen3-32b", 1, 500, 500, 3996, 200, 99_893 / 1142),
    ("h100-80gb", "qwen3-32b", 1, 1000, 1000, 217, 201, 1132),
    ("h100-80gb", "qwen3-32b", 1, 500, 500, 3996, 200, 99_790 / 976),
    ("h100-pcie", "qwen3-32b", 1, 1000, 1000, 217, 201, 1132),
    ("h100-pcie", "qwen3-32b", 1, 500, 500, 3996, 200, 99_790 / 976),
    ("h100-80gb", "qwen2.5-72b", 2, 1, 4, 128, 1024, 1000 / 30.9),
]


def test_the_assumed_part_is_amid_published_runs_as_its_source_says():
    whole = {"serving": 1.0}
    found = []
    for gpu, model, gpus, in_flight, requests, prompt, completion, measured in PUBLISHED:
        one = Pool(device(gpu, **whole), served(model), gpus, gpus, 256, in_flight)
        found.append(measured / plan_serving(one, requests, prompt, completion).tokens_per_s)
    assumed = hardware.find("h100-80gb").efficiency
    assert min(found) < assumed.serving < sorted(found)[len(found) // 2] < max(found)
    told = "".join(Path(hardware.__file__).with_name("hardware.toml").read_text().split("serving: assumed")[1:])
    for part in found:
        assert f"{part:.2f}" in told
