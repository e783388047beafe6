"""The step: one rank or several, one micro-batch or many, the same gradient; and steps that must not be taken."""

import argparse
import json
import math
import os
from pathlib import Path

import pytest
import runs
import torch
from ranks import run_ranks
from safetensors.torch import load_file
from tiny_models import VOCAB_SIZE, write_tiny_model

from skytrain import optim, parallel
from skytrain.checkpoint import read_tensors
from skytrain.errors import UserError
from skytrain.export_command import run as run_export
from skytrain.kernels import backend as kernels
from skytrain.kernels.adamw import AdamW
from skytrain.kernels.quantize import split
from skytrain.run import begin, prepare, save, saved
from skytrain.trainer import train


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), "qwen2")


@pytest.fixture(scope="module")
def tied(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tied"), "qwen3", tied=True)


def data(folder: Path, model: Path, documents: list[runs.Document]) -> Path:
    return runs.write_data(folder, documents, model)


def close(got: dict, expected: dict, tolerance: float = 1e-5) -> None:
    """Each tensor's difference, in norm, against the norm of the expected one."""
    assert got.keys() == expected.keys()
    for name in expected:
        difference = (got[name] - expected[name]).norm()
        assert difference <= tolerance * expected[name].norm(), f"{name}: {difference / expected[name].norm():.2e}"


def on_ranks(c, count: int) -> tuple[list[dict], dict]:
    run = runs.start(c)
    return runs.steps(run, count), runs.weights(run)


UPDATES = {
    "sgd": {"optim__name": "sgd", "optim__lr": 0.05, "optim__clip": 0.5},
    # At eps 1e-8 Adam's division turns a gradient's last bits into whole updates, whatever the code.
    "adamw": {"optim__name": "adamw", "optim__eps": 1e-3, "optim__clip": 0.5, "optim__weight_decay": 0.1},
}


def each_on_ranks(configs: list, count: int) -> list[tuple[list[dict], dict[str, torch.Tensor]]]:
    return [on_ranks(c, count) for c in configs]


@pytest.mark.parametrize("kind", ["untied", "tied"])
def test_two_ranks_with_four_uneven_micro_batches_equal_one_rank_with_one(kind, model, tied, tmp_path):
    """Gradient, loss, norm and parameters of each of 5 steps, in fp32. B14 too: the vocabulary is odd."""
    folder = model if kind == "untied" else tied
    documents = runs.random_documents(5 * 16, vocab=VOCAB_SIZE, seed=3)
    path = data(tmp_path / "data", folder, documents)

    def each(ranks: int, tokens: int) -> list:
        """Of each rank, with each optimizer."""
        common = {"batch__documents": 16, "batch__max_tokens": tokens}
        configs = [
            runs.settings(folder, path, tmp_path / f"{name}-{ranks}", **common, **UPDATES[name]) for name in UPDATES
        ]
        return run_ranks(ranks, each_on_ranks, configs, 5, process_group=False)

    [expected] = each(1, 1024)
    for results in each(2, 44):
        for (one, weights_one), (two, weights_two) in zip(expected, results, strict=True):
            assert [step["micro_batches"] for step in one] == [1] * 5
            assert min(step["micro_batches"] for step in two) >= 4
            for step_one, step_two in zip(one, two, strict=True):
                close(step_two["gradients"], step_one["gradients"])
                assert step_two["loss"] == pytest.approx(step_one["loss"], rel=1e-5)
                assert step_two["norm"] == pytest.approx(step_one["norm"], rel=1e-5)
            close(weights_two, weights_one)


def gradient(folder: Path, documents: list[runs.Document], tmp_path: Path, name: str, **overrides) -> list[dict]:
    path = data(tmp_path / f"{name}-data", folder, documents)
    run = runs.start(runs.settings(folder, path, tmp_path / name, **overrides))
    try:
        return runs.steps(run, run.total)
    finally:
        run.feed.close()


FORMATS = {
    "fp32": {},
    "fp32_8bit": {"optim__format": "fp32_8bit"},
    "split_8bit": {"optim__format": "split_8bit", "train__dtype": "bfloat16"},
    "host": {"optim__format": "host", "train__dtype": "bfloat16"},
    "host_8bit": {"optim__format": "host_8bit", "train__dtype": "bfloat16"},
}


def document(length: int, targets: int, seed: int = 0) -> runs.Document:
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCAB_SIZE, (length,), generator=rng).tolist()
    return ids, [0] * (length - targets) + [1] * targets


def test_micro_batches_are_summed_over_tokens_not_averaged(model, tmp_path):
    """B1: micro-batches of 3 and 30 targets give the gradient of one batch of 33."""
    documents = [document(33, 3, seed=1), document(33, 30, seed=2)]
    [apart] = gradient(model, documents, tmp_path, "apart", batch__documents=2, batch__max_tokens=40)
    [together] = gradient(model, documents, tmp_path, "together", batch__documents=2, batch__max_tokens=80)
    assert (apart["micro_batches"], together["micro_batches"]) == (2, 1)
    close(apart["gradients"], together["gradients"], 1e-6)
    assert apart["loss"] == pytest.approx(together["loss"], rel=1e-6)


def test_ranks_are_summed_over_tokens_not_averaged(model, tmp_path):
    """B2: ranks with 1 and 9 targets give the gradient, and log the loss, of one rank on both documents."""
    documents = [document(12, 1, seed=1), document(12, 9, seed=2)]
    [one] = gradient(model, documents, tmp_path, "one", batch__documents=2, batch__max_tokens=40)
    c = runs.settings(model, tmp_path / "one-data", tmp_path / "two", batch__documents=2, batch__max_tokens=12)
    for seen, _ in run_ranks(2, on_ranks, c, 1, process_group=False):
        close(seen[0]["gradients"], one["gradients"], 1e-6)
        assert seen[0]["loss"] == pytest.approx(one["loss"], rel=1e-6)
        assert seen[0]["norm"] == pytest.approx(one["norm"], rel=1e-6)


def test_the_short_last_step_is_a_step_of_its_own_tokens(model, tmp_path):
    """B4: 5 documents by 4 are 2 updates; the second is document 5's alone; the rate ends at its floor."""
    documents = [document(9 + n, 4 + n, seed=n) for n in range(5)]
    path = data(tmp_path / "data", model, documents)
    c = runs.settings(
        model, path, tmp_path / "run", batch__documents=4, batch__max_tokens=14, schedule__name="linear",
        schedule__min_ratio=0.25, optim__name="sgd", optim__clip=None,
    )  # fmt: skip
    run = runs.start(c)
    assert run.total == 2
    [first] = runs.steps(run, 1)
    assert first["micro_batches"] == 4
    before = runs.weights(run)
    [second] = runs.steps(run, 1)
    [[last]] = run.feed.planner.step(1).rows
    assert len(last) == 1
    alone_path = data(tmp_path / "alone-data", model, [documents[int(last[0])]])
    alone = runs.start(
        runs.settings(model, alone_path, tmp_path / "alone", optim__name="sgd", optim__clip=None,
                      optim__lr=second["rate"])
    )  # fmt: skip
    runs.set_weights(alone, before)
    [expected] = runs.steps(alone, 1)
    close(second["gradients"], expected["gradients"], 1e-6)
    close(runs.weights(run), runs.weights(alone), 1e-6)
    assert second["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert second["rate"] == pytest.approx(0.25 * c.optim.lr)


def test_a_micro_batch_without_targets_adds_nothing(model, tmp_path):
    """B6a: beside a micro-batch whose tokens are all masked, the other's gradient is the step's."""
    masked = document(20, 0, seed=5)
    spoken = document(20, 7, seed=6)
    common = {"batch__documents": 2, "batch__max_tokens": 20}
    [both] = gradient(model, [masked, spoken], tmp_path, "both", **common)
    [alone] = gradient(model, [spoken], tmp_path, "alone", **common)
    assert both["micro_batches"] == 2
    assert both["skip"] == 0.0
    assert all(g.isfinite().all() for g in both["gradients"].values())
    close(both["gradients"], alone["gradients"], 1e-6)


def test_a_rank_without_targets_adds_nothing(model, tmp_path):
    """B6b: one rank all masked, the other not: no hang, and the right gradient on both."""
    masked = document(20, 0, seed=5)
    spoken = document(20, 7, seed=6)
    path = data(tmp_path / "data", model, [masked, spoken])
    c = runs.settings(model, path, tmp_path / "run", batch__documents=2, batch__max_tokens=20)
    [alone] = gradient(model, [spoken], tmp_path, "alone")
    for seen, _ in run_ranks(2, on_ranks, c, 1, process_group=False):
        close(seen[0]["gradients"], alone["gradients"], 1e-6)
        assert seen[0]["loss"] == pytest.approx(alone["loss"], rel=1e-6)


def test_a_step_without_targets_is_skipped_and_counted(model, tmp_path):
    """B6c: finite loss 0, no update and no weight decay, the counter goes up, and the next step works."""
    path = data(tmp_path / "data", model, [document(20, 0, seed=n) for n in range(4)])
    c = runs.settings(model, path, tmp_path / "run", batch__documents=2, optim__weight_decay=0.5)
    run = runs.start(c)
    before = runs.weights(run)
    seen = runs.steps(run, 2)
    assert [step["loss"] for step in seen] == [0.0, 0.0]
    assert [step["skip"] for step in seen] == [1.0, 1.0]
    assert run.guard.counts.tolist() == [2.0, 2.0, 2.0]
    assert all(torch.equal(before[name], after) for name, after in runs.weights(run).items())
    assert run.optimizer.steps.item() == 0


def test_the_norm_is_of_the_whole_gradient_and_clipping_reaches_it(model, tmp_path):
    """B7: on 2 ranks the norm is the full gradient's, equal on both; after clipping to 0.1 it is 0.1."""
    path = data(tmp_path / "data", model, runs.random_documents(8, vocab=VOCAB_SIZE))
    c = runs.settings(model, path, tmp_path / "run", batch__documents=8, optim__clip=0.1)
    results = run_ranks(2, on_ranks, c, 1, process_group=False)
    norms = [seen[0]["norm"] for seen, _ in results]
    assert norms[0] == norms[1]

    def norm(tensors: dict) -> float:
        return math.sqrt(sum(t.double().square().sum().item() for t in tensors.values()))

    [first], _ = results[0]
    assert norm(first["gradients"]) == pytest.approx(norms[0], rel=1e-5)
    assert norm(first["gradients"]) > 0.2
    assert norm(first["clipped"]) == pytest.approx(0.1, rel=1e-5)


def test_gradients_add_up_in_fp32_under_bf16_compute(model, tmp_path):
    """B9: 64 equal micro-batches give 64 times the gradient of one, to 1e-3; bf16 sums would stand still at 2^8."""
    one_document = document(12, 5, seed=7)
    common = {"batch__max_tokens": 12, "train__dtype": "bfloat16", "optim__clip": None}
    [many] = gradient(model, [one_document] * 64, tmp_path, "many", batch__documents=64, **common)
    [one] = gradient(model, [one_document], tmp_path, "one", batch__documents=64, **common)
    assert many["micro_batches"] == 64
    # The loss is a mean over the step's targets, so 64 times the documents leave the gradient as it is.
    close(many["gradients"], one["gradients"], 1e-3)
    assert all(g.dtype == torch.float32 for g in many["gradients"].values())


@pytest.mark.parametrize(("count", "bound"), [(4, 1e-2), (64, 5e-2)])
def test_bf16_gradients_are_off_by_the_sums_over_micro_batches(count, bound, model, tmp_path):
    """B9, where the format gives it up: shards of bf16 weights have bf16 gradients, so each micro-batch rounds the sum.
    Ranks are still added up in fp32, and so is the norm."""
    documents = runs.random_documents(count, vocab=VOCAB_SIZE, shortest=20, seed=4)
    common = {"batch__documents": count, "train__dtype": "bfloat16", "optim__clip": None, "batch__max_tokens": 40}
    seen = {}
    for format in ("fp32_8bit", "split_8bit"):
        [seen[format]] = gradient(model, documents, tmp_path, format, optim__format=format, **common)
        assert seen[format]["micro_batches"] > count / 2
    exact, rounded = seen["fp32_8bit"]["gradients"], seen["split_8bit"]["gradients"]
    assert all(g.dtype == torch.bfloat16 for g in rounded.values())
    rounded = {name: g.float() for name, g in rounded.items()}
    # Where a weight lies halfway between two bf16 numbers, FSDP rounds to the even one and the split away from zero.
    assert seen["split_8bit"]["loss"] == pytest.approx(seen["fp32_8bit"]["loss"], rel=1e-4)
    close(rounded, exact, bound)
    norm = math.sqrt(sum(g.double().square().sum().item() for g in rounded.values()))
    assert seen["split_8bit"]["norm"] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("format", ["split_8bit", "host", "host_8bit"])
def test_weights_kept_in_two_parts_start_and_are_exported_with_all_their_bits(format, model, tmp_path):
    """fp32 weights in; after steps of rate 0 the same out, from the run and from its checkpoint, on two ranks."""
    path = data(tmp_path / "data", model, runs.random_documents(8, vocab=VOCAB_SIZE))
    options = {"optim__lr": 0.0, "train__max_steps": 1, **FORMATS[format]}
    run_ranks(2, rank_train, runs.settings(model, path, tmp_path / "run", **options), process_group=False)
    run_export(argparse.Namespace(folder=tmp_path / "run", out=tmp_path / "later", step=None))
    source = load_file(model / "model.safetensors")
    stored = {n: fetch() for n, _, fetch in read_tensors(tmp_path / "run" / "checkpoints" / "step-00000001", "model.")}
    assert any((tensor.bfloat16() != tensor).any() for tensor in source.values())
    for folder in (tmp_path / "run" / "export" / "step-00000001", tmp_path / "later"):
        got = load_file(folder / "model.safetensors")
        assert got.keys() == source.keys()
        assert all(torch.equal(got[name], source[name].float()) for name in source)
    of_weights = torch.bfloat16 if format == "split_8bit" else torch.float32
    assert all(stored[f"model.{name}"].dtype == of_weights for name in source)


def split_beside_whole(c, count: int) -> int:
    """Trains with split weights, and gives each of their gradients to 8-bit AdamW over fp32 weights too. Returns the
    number of weights that were seen to be equal."""
    run = runs.start(c)
    o, update, equal = run.optimizer, run.optimizer.step, 0
    whole = [optim.local(o.master(name)).clone() for name in o.parameters]
    decays = [c.optim.weight_decay if p.ndim > 1 else 0.0 for p in o.parameters.values()]
    reference = AdamW(whole, decays, format="fp32_8bit", betas=c.optim.betas, eps=c.optim.eps, backend="reference")

    def both(rate: float, divisor: torch.Tensor, skip: torch.Tensor) -> None:
        nonlocal equal
        gradients = [optim.local(p.grad).float() for p in o.parameters.values()]
        update(rate, divisor, skip)
        reference.step(gradients, rate, divisor, skip)
        for (name, p), expected in zip(o.parameters.items(), whole):
            assert torch.equal(optim.local(o.master(name)), expected), name
            # What the layers multiply with.
            assert torch.equal(optim.local(p), split(expected)[0]), name
            equal += expected.numel()

    o.step = both
    runs.steps(run, count)
    return equal


def test_split_weights_follow_whole_ones_through_a_run(model, tmp_path):
    """On a run's gradients, sharded over two ranks, to the bit: the one error of the format is in its gradients."""
    path = data(tmp_path / "data", model, runs.random_documents(24, vocab=VOCAB_SIZE))
    options = {"optim__weight_decay": 0.1, **FORMATS["split_8bit"]}
    settings = runs.settings(model, path, tmp_path / "run", **options)
    seen = run_ranks(2, split_beside_whole, settings, 6, process_group=False)
    assert sum(seen) == 6 * sum(t.numel() for t in load_file(model / "model.safetensors").values())


@pytest.mark.parametrize("count", [1, 3])
def test_fewer_rows_than_ranks_end_cleanly(count, model, tmp_path):
    """B23: 3 rows, and 1 row, on 2 ranks: the same number of micro-batches on both, and the right gradient."""
    documents = [document(20, 6 + n, seed=n) for n in range(2 + count)]
    path = data(tmp_path / "data", model, documents)
    # The last step holds `count` documents of a row each.
    common = {"batch__documents": 2, "optim__name": "sgd"} if count == 1 else {"batch__documents": 5}
    two = runs.settings(model, path, tmp_path / "two", batch__max_tokens=20, **common)
    one = runs.settings(model, path, tmp_path / "one", batch__max_tokens=512, **common)
    steps_there = 2 if count == 1 else 1
    run = runs.start(one)
    assert run.total == steps_there
    expected = runs.steps(run, steps_there)
    results = run_ranks(2, on_ranks, two, steps_there, process_group=False)
    assert results[0][0][-1]["micro_batches"] == results[1][0][-1]["micro_batches"]
    for seen, _ in results:
        close(seen[-1]["gradients"], expected[-1]["gradients"])


def test_a_poisoned_step_is_skipped_and_too_many_end_the_run(model, tmp_path):
    """Non-finite steps change nothing but the counters; train.max_bad_steps in a row end the run, saved."""
    path = data(tmp_path / "data", model, runs.random_documents(16, vocab=VOCAB_SIZE))
    c = runs.settings(model, path, tmp_path / "run", train__max_bad_steps=2, batch__documents=2, optim__lr=1e38)
    with pytest.raises(UserError, match=r"2 steps in a row.*step-0"):
        train(c)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines][-2:] == [1, 2]
    assert lines[-1]["loss"] is None or lines[-1]["grad_norm"] is None
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) == 1


@pytest.mark.parametrize("format", FORMATS)
def test_a_run_that_stopped_goes_on_bit_for_bit(model, tmp_path, format):
    """12 steps equal 5 and then 7 from the checkpoint: losses, norms, rates, and every saved tensor."""
    path = data(tmp_path / "data", model, runs.random_documents(24, vocab=VOCAB_SIZE))
    common = {
        "batch__documents": 4, "train__epochs": 2, "schedule__name": "cosine", "checkpoint__every": 5,
        "schedule__warmup_steps": 2, "checkpoint__keep": 9, **FORMATS[format],
    }  # fmt: skip
    train(runs.settings(model, path, tmp_path / "whole", **common))
    stopped = runs.settings(model, path, tmp_path / "parts", **common)
    run = runs.start(stopped)
    runs.steps(run, 5)
    begin(run, resume=False)
    save(run)
    saved(run)
    os.close(run.lock)
    train(stopped, resume=True)

    def logged(name: str) -> dict[int, tuple]:
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "loss" in line]
        return {line["step"]: (line["loss"], line["grad_norm"], line["lr"], line["tokens"]) for line in steps}

    whole, parts = logged("whole"), logged("parts")
    assert list(whole) == list(range(1, 13))
    assert list(parts) == list(range(6, 13))
    assert all(parts[step] == whole[step] for step in parts)
    folders = [tmp_path / name / "checkpoints" / "step-00000012" for name in ("whole", "parts")]
    one, two = ({n: fetch() for n, _, fetch in read_tensors(folder)} for folder in folders)
    assert one.keys() == two.keys()
    assert any(name.startswith("optim.exp_avg_sq.") for name in one)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_validation_loss_is_the_mean_over_held_out_targets(model, tmp_path):
    """Equal to the training loss of one step over the same documents, whatever the packing."""
    documents = runs.random_documents(10, vocab=VOCAB_SIZE, seed=9)
    path = data(tmp_path / "data", model, documents)
    c = runs.settings(
        model, path, tmp_path / "run", data__validation=str(path), batch__documents=10, batch__max_tokens=60,
        optim__lr=0.0,
    )  # fmt: skip
    train(c)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[1]["validation_loss"] == pytest.approx(lines[0]["loss"], rel=1e-6)


@pytest.mark.skipif(kernels.triton is None, reason="triton is not installed")
def test_triton_s_kernels_train_as_the_reference_does(tmp_path):
    """Every kernel at once, in Triton's interpreter (on a GPU machine: on the GPU), under FSDP2: a model with query and
    key norms, grouped heads, and two micro-batches a step."""
    model = write_tiny_model(tmp_path / "model", "qwen3")
    folder = data(tmp_path / "data", model, runs.random_documents(4, vocab=VOCAB_SIZE, longest=12))
    seen = {}
    for name in ("reference", "triton"):
        device = "auto" if torch.cuda.is_available() else "cpu"
        c = runs.settings(
            model, folder, tmp_path / name, kernels__backend=name, batch__max_tokens=24, train__device=device
        )
        run = runs.start(c)
        assert run.backends.kernels == name
        seen[name] = runs.steps(run, 1)
        parallel.stop()
    [triton], [reference] = seen["triton"], seen["reference"]
    assert reference["micro_batches"] > 1
    close(triton["gradients"], reference["gradients"])
    assert triton["loss"] == pytest.approx(reference["loss"], rel=1e-5)


def rank_train(settings) -> None:
    train(settings)


@pytest.mark.parametrize("format", ["fp32_8bit", "split_8bit", "host", "host_8bit"])
def test_states_of_two_ranks_are_loaded_by_one(format, model, tmp_path):
    """Codes, scales, remainders and what is in host memory are sharded by rows like their parameters, uneven too."""
    path = data(tmp_path / "data", model, runs.random_documents(24, vocab=VOCAB_SIZE))
    options = {"batch__documents": 4, "checkpoint__keep": 9, **FORMATS[format]}
    shorter = runs.settings(model, path, tmp_path / "run", train__max_steps=3, **options)
    run_ranks(2, rank_train, shorter, process_group=False)
    longer = runs.settings(model, path, tmp_path / "run", train__max_steps=5, **options)
    world = parallel.start(longer)
    run = prepare(longer, world, resume=True)
    begin(run, resume=True)
    assert run.done == 3
    stored = {n: fetch() for n, _, fetch in read_tensors(tmp_path / "run" / "checkpoints" / "step-00000003")}
    state = {name: runs.full(tensor) for name, tensor in run.state().items()}
    os.close(run.lock)
    parallel.stop()
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[name], stored[name]) for name in stored)
    seconds = [tensor for name, tensor in stored.items() if name.startswith("optim.exp_avg_sq.") and tensor.ndim > 1]
    of_seconds = torch.uint8 if "8bit" in format else torch.float32
    assert seconds and all(tensor.dtype == of_seconds and tensor.any() for tensor in seconds)
    remainders = [tensor for name, tensor in stored.items() if name.startswith("optim.remainder.")]
    assert all(tensor.dtype == torch.int16 and tensor.any() for tensor in remainders)
    assert bool(remainders) == (format == "split_8bit")
    train(longer, resume=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("before", "after"), [("fp32", "host"), ("host_8bit", "fp32_8bit"), ("fp32_8bit", "host_8bit")]
)
def test_a_run_goes_on_with_its_states_moved_to_the_host_or_back(before, after, model, tmp_path):
    """The same weights and moments by the same names: where they are changes, and the gradients' dtype."""
    path = data(tmp_path / "data", model, runs.random_documents(24, vocab=VOCAB_SIZE))
    options = {"batch__documents": 4, "train__dtype": "bfloat16", "checkpoint__keep": 9}
    train(runs.settings(model, path, tmp_path / "run", train__max_steps=3, optim__format=before, **options))
    longer = runs.settings(model, path, tmp_path / "run", train__max_steps=5, optim__format=after, **options)
    world = parallel.start(longer)
    run = prepare(longer, world, resume=True)
    begin(run, resume=True)
    stored = {n: fetch() for n, _, fetch in read_tensors(tmp_path / "run" / "checkpoints" / "step-00000003")}
    state = {name: runs.full(tensor) for name, tensor in run.state().items()}
    computed_with = {name: runs.full(p) for name, p in run.model.named_parameters()}
    os.close(run.lock)
    parallel.stop()
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[name], stored[name]) for name in stored)
    for name, weight in computed_with.items():
        assert torch.equal(weight, state[f"model.{name}"].to(weight.dtype))
    train(longer, resume=True)


@pytest.mark.parametrize("options", [{}, {"parallel__reshard_after_forward": False}], ids=["tied", "kept whole"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_validation_changes_neither_the_steps_nor_the_checkpoints(tmp_path, ranks, options):
    """After a forward pass alone the root's weights stay gathered, in bf16: they must not reach a checkpoint."""
    folder = write_tiny_model(tmp_path / "model", "qwen2", tied=True)
    path = data(tmp_path / "data", folder, runs.random_documents(12, vocab=VOCAB_SIZE))
    held_out = data(tmp_path / "held_out", folder, runs.random_documents(4, vocab=VOCAB_SIZE, seed=1))
    common = {"train__dtype": "bfloat16", "checkpoint__every": 1, "checkpoint__keep": 9, **options}
    plain = runs.settings(folder, path, tmp_path / "plain", **common)
    checked = runs.settings(
        folder, path, tmp_path / "checked", data__validation=str(held_out), train__validate_every=1, **common
    )
    for settings in (plain, checked):
        run_ranks(ranks, rank_train, settings, process_group=False)
    for step in ("step-00000001", "step-00000003"):
        one, two = (
            {n: fetch() for n, _, fetch in read_tensors(tmp_path / name / "checkpoints" / step)}
            for name in ("plain", "checked")
        )
        assert one["model.model.embed_tokens.weight"].dtype == torch.float32
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
