"""How a model is wrapped changes what it costs, never what it computes."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import runs
import torch
import torch.distributed as dist
from ranks import run_ranks
from tiny_models import VOCAB_SIZE, write_tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from skytrain import parallel
from skytrain.errors import UserError
from skytrain.trainer import train_step


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("inputs")
    model = write_tiny_model(root / "model", "qwen3")
    return model, runs.write_data(root / "data", runs.random_documents(12, vocab=VOCAB_SIZE), model)


def two_steps(inputs: tuple[Path, Path], tmp_path: Path, name: str, **overrides) -> list[dict]:
    run = runs.start(runs.settings(*inputs, tmp_path / name, batch__documents=6, batch__max_tokens=80, **overrides))
    try:
        return runs.steps(run, 2)
    finally:
        run.feed.close()


def largest_difference(got: list[dict], expected: list[dict]) -> float:
    """Over all steps and tensors, in norm, as a part of the expected tensor's norm."""
    return max(
        ((a["gradients"][name] - b["gradients"][name]).norm() / b["gradients"][name].norm()).item()
        for a, b in zip(got, expected, strict=True)
        for name in b["gradients"]
    )


def test_more_ranks_than_cores_are_warned_of(monkeypatch):
    monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda _: {0, 1})
    world = parallel.World(0, 3, torch.device("cpu"), 1, None, None, 0, 3)
    (line,) = parallel.crowded(world)
    assert line == "warning: 3 ranks share 2 CPU core(s); --nproc-per-node 2 is faster"
    assert parallel.crowded(replace(world, local_size=2)) == []
    assert parallel.crowded(replace(world, device=torch.device("cuda"))) == []


def test_recomputation_changes_no_bit(inputs, tmp_path):
    kept = two_steps(inputs, tmp_path, "kept")
    recomputed = two_steps(inputs, tmp_path, "recomputed", activations__checkpoint="full")
    assert largest_difference(recomputed, kept) == 0.0


def test_recomputation_frees_the_layers_inside(inputs, tmp_path):
    """What autograd saves over the whole model falls to little more than a tensor a layer."""

    def saved_bytes(name: str, checkpoint: str) -> int:
        run = runs.start(runs.settings(*inputs, tmp_path / name, activations__checkpoint=checkpoint))
        row = run.feed[0].rows[0]
        storages = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.shape[:1] == row.input_ids.shape:  # not a weight
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run.model(**vars(row), scale=1.0).backward()
        run.feed.close()
        return sum(storages.values())

    assert saved_bytes("full", "full") < 0.7 * saved_bytes("none", "none")


def test_weights_kept_gathered_compute_the_same(inputs, tmp_path):
    resharded = two_steps(inputs, tmp_path, "resharded")
    kept = two_steps(inputs, tmp_path, "kept", parallel__reshard_after_forward=False)
    assert largest_difference(kept, resharded) == 0.0


def test_compiled_layers_compute_the_same(inputs, tmp_path):
    """Rows of several lengths, with recomputation inside the compiled layer."""
    eager = two_steps(inputs, tmp_path, "eager")
    compiled = two_steps(inputs, tmp_path, "compiled", train__compile=True, activations__checkpoint="full")
    assert largest_difference(compiled, eager) < 1e-5


def on_ranks(c, count: int) -> list[dict]:
    return runs.steps(runs.start(c), count)


def test_hsdp_on_four_ranks_equals_one_rank(inputs, tmp_path):
    one = two_steps(inputs, tmp_path, "one")
    c = runs.settings(
        *inputs, tmp_path / "four", batch__documents=6, batch__max_tokens=80, parallel__nodes=2, optim__clip=0.1
    )
    for four in run_ranks(4, on_ranks, c, 1, process_group=False):
        assert largest_difference(four, one[:1]) < 1e-5
        assert four[0]["norm"] == pytest.approx(one[0]["norm"], rel=1e-5)


class Collectives(TorchDispatchMode):
    """How often weights are gathered and gradients reduced, and in which dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.gathered, self.reduced = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.c10d._allgather_base_.default:
            self.gathered.append(args[1].dtype)
        elif func is torch.ops.c10d._reduce_scatter_base_.default:
            self.reduced.append(args[1].dtype)
        return func(*args, **(kwargs or {}))


def collectives(c) -> tuple[list[dict], list[torch.dtype], list[torch.dtype], int]:
    """A step, and what the next one gathers and reduces in how many micro-batches."""
    run = runs.start(c)
    seen = runs.steps(run, 1)
    step = run.feed[1]
    with Collectives() as mode:
        train_step(run, step, 1e-3)
    run.feed.close()
    return seen, mode.gathered, mode.reduced, len(step.rows)


@pytest.mark.parametrize("checkpoint", ["none", "full"])
def test_no_weight_is_gathered_twice_without_need(checkpoint, inputs, tmp_path):
    """In a micro-batch each group once in forward; in backward all layers but the last, and no other group."""
    c = runs.settings(
        *inputs, tmp_path / "run", batch__documents=6, batch__max_tokens=40, activations__checkpoint=checkpoint
    )
    for _, gathered, reduced, rows in run_ranks(2, collectives, c, process_group=False):
        layers, others = 2, 3
        assert rows > 1
        assert gathered == [torch.float32] * rows * (layers + others + layers - 1)
        assert reduced == [torch.float32] * rows * (layers + others)


def test_gradients_reduced_in_bf16_are_near(inputs, tmp_path):
    common = {"batch__documents": 6, "batch__max_tokens": 40, "train__dtype": "bfloat16"}
    seen = {}
    for dtype in ("float32", "bfloat16"):
        c = runs.settings(*inputs, tmp_path / dtype, parallel__reduce_dtype=dtype, **common)
        [(seen[dtype], gathered, reduced, rows), _] = run_ranks(2, collectives, c, process_group=False)
        assert set(gathered) == {torch.bfloat16}
        # The head's gradient is made in fp32, and stays so.
        assert sorted(map(str, reduced)) == sorted([f"torch.{dtype}"] * rows * 4 + ["torch.float32"] * rows)
    assert 0.0 < largest_difference(seen["bfloat16"], seen["float32"]) < 2e-2


def test_bf16_compute_keeps_fp32_weights_and_gradients(inputs, tmp_path):
    exact = two_steps(inputs, tmp_path, "exact")
    rounded = two_steps(inputs, tmp_path, "rounded", train__dtype="bfloat16")
    assert all(g.dtype == torch.float32 for step in rounded for g in step["gradients"].values())
    assert 0.0 < largest_difference(rounded[:1], exact[:1]) < 0.1


def test_nodes_that_do_not_divide_the_ranks(inputs, tmp_path):
    with pytest.raises(UserError, match=r"parallel\.nodes = 3"):
        parallel.start(runs.settings(*inputs, tmp_path / "run", parallel__nodes=3))


def test_a_gpu_that_is_not_there(inputs, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(UserError, match=r"train\.device = 'cuda'"):
        parallel.start(runs.settings(*inputs, tmp_path / "run", train__device="cuda"))


@pytest.mark.parametrize("late", [0, 1, 2])
def test_ranks_started_again_meet_where_nobody_has_written(late):
    """Whichever comes last: the others find what the start before has left in the store."""
    store = dist.HashStore()

    def join(rank: int, last: int) -> None:
        time.sleep(0.3 * (rank == last))
        parallel.fresh_store(store, rank, 3, 20.0).set(f"address/{rank}", "taken")
        starts.append(store.get("start"))

    starts: list[bytes] = []
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(join, range(3), [2] * 3))
        list(pool.map(join, range(3), [late] * 3))
    assert len(set(starts[:3])) == len(set(starts[3:])) == 1
    assert starts[0] != starts[3]
    for start in starts[0], starts[3]:
        assert store.check([f"{start.decode()}/address/{rank}" for rank in range(3)])


def test_a_rank_whose_first_never_starts_says_so():
    store = dist.HashStore()
    store.set("start", "of a start before")
    with pytest.raises(dist.DistStoreError, match="rank 0 did not start within"):
        parallel.fresh_store(store, 1, 2, 0.1)


def test_more_processes_than_gpus_are_told_by_the_first_rank(inputs, tmp_path, monkeypatch):
    """It has a GPU itself, and the one that has none is not heard."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"3 processes on this node, which has 2 GPU.*--nproc-per-node 2"):
        parallel.start(runs.settings(*inputs, tmp_path / "run", train__device="cuda"))
