"""What a layer keeps, recomputes or moves to the host changes memory and time, and no bit of the gradients."""

from pathlib import Path

import pytest
import runs
import torch
from ranks import run_ranks
from tiny_models import VOCAB_SIZE, write_tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from skytrain.errors import UserError

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


@pytest.fixture(scope="module")
def inputs(request, tmp_path_factory) -> tuple[Path, Path]:
    """`request.param`: of FAMILIES, untied where a test names none."""
    family, tied = FAMILIES[getattr(request, "param", "untied")]
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
    return {name: train(c, 2) for name, c in configs.items()}


def same_bits(got: list[dict], expected: list[dict]) -> None:
    for a, b in zip(got, expected, strict=True):
        assert a["loss"] == b["loss"] and a["norm"] == b["norm"]
        assert all(torch.equal(a["gradients"][name], b["gradients"][name]) for name in b["gradients"])


# Each two of these choices meet.
CHOICES = [("untied", 1, "float32"), ("untied", 2, "bfloat16"), ("tied", 1, "bfloat16"), ("tied", 2, "float32")]


@pytest.mark.parametrize(("inputs", "ranks", "dtype"), CHOICES, indirect=["inputs"])
def test_no_policy_changes_a_bit(inputs, ranks, dtype, tmp_path):
    """Two steps, the second with the weights that the first has made, of several micro-batches each, with FSDP2."""
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


COUNTED = {
    torch.ops.aten.mm.default: "product",
    torch.ops.aten.addmm.default: "product",
    torch.ops.skytrain.packed_attention.default: "attention",
}


class Counter(TorchDispatchMode):
    """Products and attentions that really run, below the modes of the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = {"product": 0, "attention": 0}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in COUNTED:
            self.counts[COUNTED[func]] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("policy", "products", "attentions"),
    [
        # A layer's forward has 7 products, its backward two for each of them. Recomputed are all of them but down's,
        # which nobody reads, and those whose outputs are held; queries and keys are held rotated, and then not read.
        ("none", 0, 0),
        ("full", 6, 1),
        ("keep attention", 6, 0),
        ("keep qkv", 3, 1),
        ("keep o_proj", 5, 1),
        ("keep gate", 5, 1),
        ("keep all", 0, 0),
        ("offload many", 1, 0),
        ("offload all", 0, 0),
    ],
)
def test_what_is_held_is_not_computed_again(policy, products, attentions, tmp_path):
    """Counted over one step of one micro-batch, against a step that keeps everything."""
    model = write_tiny_model(tmp_path / "model", "qwen2", num_hidden_layers=2)
    data = runs.write_data(tmp_path / "data", runs.random_documents(2, vocab=VOCAB_SIZE), model)
    counts = []
    for name in ("none", policy):
        chosen = {} if name == "none" else options(name)
        run = runs.start(runs.settings(model, data, tmp_path / "run", **{**chosen, "batch__max_tokens": 512}))
        with Counter() as counter:
            runs.steps(run, 1)
        run.feed.close()
        counts.append(counter.counts)
    none, held = counts
    assert none == {"product": 2 * 7 * 3, "attention": 2}
    assert held["product"] - none["product"] == 2 * products
    assert held["attention"] - none["attention"] == 2 * attentions


def forward(policy: str, inputs: tuple[Path, Path], folder: Path):
    """One forward pass over one row: the run, its loss with its graph, and the row's tokens."""
    chosen = {} if policy == "none" else options(policy)
    run = runs.start(runs.settings(*inputs, folder, **{**chosen, "batch__documents": 18, "batch__max_tokens": 4096}))
    [row] = run.feed[0].rows
    return run, lambda: run.model(**vars(row), scale=1.0), len(row.input_ids)


def test_memory_from_forward_to_backward_is_that_of_what_is_held(tmp_path):
    """Bytes that a forward pass leaves allocated, by torch's allocator, against arithmetic on the model's shapes."""
    model = write_tiny_model(tmp_path / "model", "qwen2", num_hidden_layers=4)
    documents = runs.random_documents(18, vocab=VOCAB_SIZE, shortest=100, longest=200)
    inputs = model, runs.write_data(tmp_path / "data", documents, model)
    held = {}
    for policy in ("none", *POLICIES):
        run, loss, tokens = forward(policy, inputs, tmp_path / "run")
        loss().backward()  # What the first pass makes for all those to come.
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
        ) as profile:
            kept = loss()
        held[policy] = sum(event.self_cpu_memory_usage for event in profile.events())
        del kept
        run.feed.close()
    c = run.model.config
    queries, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    width = {
        "attention": queries + c.num_attention_heads,  # the output and its logsumexp
        "qkv": queries + 2 * keys,
        "o_proj": c.hidden_size,
        "gate": c.intermediate_size,
        "up": c.intermediate_size,
    }
    row = 4 * tokens * c.num_hidden_layers
    for name, values in width.items():
        assert held[f"keep {name}"] - held["full"] == pytest.approx(row * values, rel=0.02), name
    assert held["keep all"] - held["full"] == pytest.approx(row * sum(width.values()), rel=0.02)
    assert held["keep all"] < held["none"]
    # On a CPU the host's buffers are there from the first pass on, and nothing but them is held.
    assert held["offload input"] - held["full"] == pytest.approx(-row * c.hidden_size, rel=0.02)
    assert held["offload all"] == pytest.approx(held["offload input"], abs=0.02 * row)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"checkpoint": "selective", "keep": ["attn"]}, r"activations\.keep.*attention, qkv, o_proj, gate, up"),
        ({"checkpoint": "selective", "keep": ["input"]}, r"activations\.keep"),
        ({"checkpoint": "selective", "offload": ["gate", "gate"]}, r"activations\.offload.*repeated"),
        ({"checkpoint": "selective", "keep": ["gate"], "offload": ["gate"]}, r"gate cannot be in activations\.keep"),
        ({"checkpoint": "full", "keep": ["gate"]}, r'activations\.keep.*"selective"'),
        ({"offload": ["input"]}, r'activations\.offload.*"selective"'),
    ],
)
def test_settings_that_would_not_be_followed_are_refused(settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        runs.settings(tmp_path, tmp_path, tmp_path, **{f"activations__{key}": value for key, value in settings.items()})


def test_what_cannot_be_done_is_refused_before_the_start(inputs, tmp_path):
    c = runs.settings(
        *inputs, tmp_path / "run", train__compile=True, activations__checkpoint="selective",
        activations__keep=["attention"], activations__offload=["gate"],
    )  # fmt: skip
    with pytest.raises(UserError, match="all kept or all offloaded"):
        runs.start(c)


@pytest.mark.parametrize("policy", ["keep attention", "offload input and attention"])
def test_compiled_layers_hold_what_eager_ones_do(policy, tmp_path):
    """The same gradients but for the compiler's rounding, bytes that really moved, and few compilations."""
    model = write_tiny_model(tmp_path / "model", "qwen2", num_hidden_layers=6)
    inputs = model, runs.write_data(tmp_path / "data", runs.random_documents(18, vocab=VOCAB_SIZE), model)
    chosen = options("keep attention")
    if policy != "keep attention":
        chosen |= {"activations__keep": [], "activations__offload": ["input", "attention"]}
    eager, moved, _ = train(runs.settings(*inputs, tmp_path / "eager", **chosen), 3)
    torch._dynamo.reset()  # Past its limit of compilations dynamo would go on eagerly, without a word.
    torch._dynamo.utils.counters.clear()
    compiled, moved_too, back = train(runs.settings(*inputs, tmp_path / "compiled", train__compile=True, **chosen), 3)
    for a, b in zip(compiled, eager, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        for name, gradient in b["gradients"].items():
            assert (a["gradients"][name] - gradient).norm() <= 1e-5 * gradient.norm(), name
    assert moved_too == back
    assert (moved_too > 0) == (moved > 0) == (policy != "keep attention")
    # One graph serves all layers (of which there are more than graphs) and lengths; a row of one document, or of none,
    # may need another.
    assert 1 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3
