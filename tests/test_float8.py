"""Float8 products: cast as the recipes say, on filled rows, under every policy of activations; refused elsewhere."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import runs
import torch
from ranks import run_ranks
from tiny_models import VOCAB_SIZE, write_tiny_model

from skytrain import float8, hf
from skytrain.config import Train
from skytrain.errors import UserError
from skytrain.plan.workload import known_models

RECIPES = ["tensorwise", "rowwise"]
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[Path, Path]:
    return write_inputs(tmp_path_factory.mktemp("inputs"), 4)


@pytest.fixture(scope="module")
def shallow(tmp_path_factory) -> tuple[Path, Path]:
    return write_inputs(tmp_path_factory.mktemp("shallow"), 2)


def write_inputs(root: Path, layers: int) -> tuple[Path, Path]:
    """No width is a row's number of tokens: the compiler takes torchao's products of that case for another graph."""
    widths = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 6}
    model = write_tiny_model(root / "model", "qwen2", num_hidden_layers=layers, **widths)
    return model, runs.write_data(root / "data", runs.random_documents(18, vocab=VOCAB_SIZE), model)


def options(**others):
    return {"batch__documents": 6, "batch__max_tokens": 80} | others


def train(c, count: int = 3) -> list[dict]:
    run = runs.start(c)
    seen = runs.steps(run, count)
    run.feed.close()
    return seen


def train_all(configs: dict) -> dict:
    return {name: train(c, 2) for name, c in configs.items()}


def rounded(x: torch.Tensor, dtype: torch.dtype, dim: int | None) -> torch.Tensor:
    """x as float8 holds it: scaled so that the largest value (of each row along `dim`) is the dtype's largest; a row's
    scale is a power of two."""
    largest = x.abs().max() if dim is None else x.abs().amax(dim, keepdim=True)
    scale = torch.finfo(dtype).max / largest.double().clamp(min=1e-12)
    if dim is not None:
        scale = torch.exp2(torch.floor(torch.log2(scale)))
    scale = scale.float()
    return (x * scale).clamp(torch.finfo(dtype).min, torch.finfo(dtype).max).to(dtype).float() / scale


@pytest.mark.parametrize("recipe", RECIPES)
def test_operands_are_cast_as_the_recipe_says(inputs, recipe):
    """Of one layer's product: forward, and both gradients, from operands that were rounded by hand."""
    from skytrain.model import Backends, CausalLM

    torch.manual_seed(0)
    model = CausalLM(hf.read_config(inputs[0]), Backends("reference", "reference", 2**20))
    linear = model.model.layers[1].mlp.up_proj
    names = [name for name, _ in model.named_parameters()]
    torch.nn.init.normal_(linear.weight)
    float8.convert(model, recipe, emulate=True)
    converted = model.model.layers[1].mlp.up_proj
    assert [name for name, _ in model.named_parameters()] == names
    assert converted.weight is linear.weight and type(model.lm_head).__name__ == "Head"

    x = torch.randn(32, linear.in_features, requires_grad=True)
    d_out = torch.randn(32, linear.out_features)
    out = converted(x)
    d_x, d_weight = torch.autograd.grad(out, (x, converted.weight), d_out)
    w, each = linear.weight.detach(), recipe == "rowwise"
    d_dtype = E4M3 if each else E5M2

    def of(tensor, dtype, dim):
        return rounded(tensor.detach(), dtype, dim if each else None)

    expected = of(x, E4M3, 1) @ of(w, E4M3, 1).t()
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(d_x, of(d_out, d_dtype, 1) @ of(w, E4M3, 0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(d_weight, of(d_out, d_dtype, 0).t() @ of(x, E4M3, 0), rtol=1e-4, atol=1e-4)
    assert (out - x @ w.t()).norm() > 0.01 * out.norm()


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_are_near_those_of_wide_products(inputs, recipe, dtype, tmp_path):
    common = options(train__dtype=dtype)
    wide = train(runs.settings(*inputs, tmp_path / "wide", **common), 1)[0]
    narrow = train(runs.settings(*inputs, tmp_path / "float8", train__float8=recipe, **common), 1)[0]
    assert narrow["loss"] == pytest.approx(wide["loss"], rel=0.01)
    assert narrow["norm"] != wide["norm"]
    wide_gradient, gradient = (torch.cat([g.flatten() for g in a["gradients"].values()]) for a in (wide, narrow))
    # Rounding to e4m3 is an error of 2.6% in the mean square, to e5m2 of 5%; there are 28 products on the way up, as
    # many on the way down, each of two operands: 0.2 to 0.3 where no error helps another.
    assert (gradient - wide_gradient).norm() < 0.25 * wide_gradient.norm()


POLICIES = {
    "full": ([], []),
    "keep qkv": (["qkv"], []),
    "keep all": (["attention", "qkv", "o_proj", "gate", "up"], []),
    "offload all": ([], ["input", "attention", "qkv", "o_proj", "gate", "up"]),
}


def held(policy: str) -> dict:
    keep, offload = POLICIES[policy]
    return {"activations__checkpoint": "selective", "activations__keep": keep, "activations__offload": offload}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("ranks", [1, 2])
def test_no_policy_changes_a_bit(shallow, recipe, ranks, tmp_path):
    common = options(train__float8=recipe)
    configs = {
        "none": runs.settings(*shallow, tmp_path / "none", **common),
        **{name: runs.settings(*shallow, tmp_path / name, **held(name), **common) for name in POLICIES},
    }
    for results in run_ranks(ranks, train_all, configs, process_group=False):
        expected = results.pop("none")
        for got in results.values():
            for a, b in zip(got, expected, strict=True):
                assert a["loss"] == b["loss"] and a["norm"] == b["norm"]
                assert all(torch.equal(a["gradients"][name], b["gradients"][name]) for name in b["gradients"])


@pytest.mark.parametrize(("recipe", "policy"), [("tensorwise", "keep qkv"), ("rowwise", "full")])
def test_compiled_layers_compute_what_eager_ones_do(inputs, recipe, policy, tmp_path):
    """But for the compiler's rounding, which moves single values to the next float8 one; few compilations."""
    common = options(train__float8=recipe, **held(policy))
    eager = train(runs.settings(*inputs, tmp_path / "eager", **common))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = train(runs.settings(*inputs, tmp_path / "compiled", train__compile=True, **common))
    for a, b in zip(compiled, eager, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
    for name, gradient in eager[0]["gradients"].items():
        assert (compiled[0]["gradients"][name] - gradient).norm() <= 0.02 * gradient.norm(), name
    assert 1 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3  # for 4 layers


def test_rows_are_filled_to_whole_products(inputs, tmp_path):
    """With documents' own numbers of tokens a weight's gradient could not be multiplied in float8."""
    run = runs.start(runs.settings(*inputs, tmp_path / "run", **options(train__float8="tensorwise")))
    for index in range(run.total):
        step = run.feed[index]
        assert all(len(row.input_ids) % 16 == 0 for row in step.rows)
    run.feed.close()


def refuse(monkeypatch, message: str, *, capability=(9, 0), model=None, device="cuda", **train) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    model = model or known_models()["qwen2.5-32b"]
    settings = Train(**({"float8": "tensorwise", "compile": True} | train))
    with pytest.raises(UserError, match=message):
        float8.check(settings, model, torch.device(device))


def test_it_is_refused_where_it_cannot_run(monkeypatch):
    large = known_models()["qwen2.5-32b"]
    refuse(monkeypatch, "sm_89 or newer, and this one is sm_80", capability=(8, 0))
    refuse(monkeypatch, "sm_90 or newer, and this one is sm_89", capability=(8, 9), float8="rowwise")
    refuse(monkeypatch, "train.compile = true", compile=False)
    refuse(monkeypatch, "bfloat16", dtype="float32")
    refuse(monkeypatch, "intermediate_size is 27656", model=replace(large, intermediate_size=27656), device="cpu")
    float8.check(Train(float8="tensorwise", compile=True), large, torch.device("cuda"))
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    refuse(monkeypatch, r"pip install 'skytrain\[float8\]'", device="cpu")


def test_rows_that_cannot_be_filled_are_refused(inputs, tmp_path):
    with pytest.raises(UserError, match=r"batch.max_tokens = 100: must be a multiple of 16"):
        runs.settings(*inputs, tmp_path / "run", batch__max_tokens=100, train__float8="rowwise")
