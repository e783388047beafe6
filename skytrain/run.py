"""What a run is made of: checks of the user's inputs, the sharded model, the data feeds, saving and loading."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from skytrain import (
    attention,
    checkpoint,
    config,
    float8,
    flops,
    hf,
    optim,
    parallel,
    preflight,
    progress,
    resumption,
    storage,
)
from skytrain.config import Config
from skytrain.data.chat import tokenizer_digest
from skytrain.data.dataset import TokenDataset
from skytrain.data.plan import Planner
from skytrain.errors import UserError, unwritten
from skytrain.export import default_system, export, model_tensors
from skytrain.feed import Feed
from skytrain.kernels.backend import resolve
from skytrain.locks import lock
from skytrain.model import Backends, CausalLM, ModelConfig
from skytrain.offload import HostMemory
from skytrain.parallel import World
from skytrain.plan import in_run
from skytrain.plan.forecast import Forecast, with_format
from skytrain.saver import Saved, Saver
from skytrain.spikes import SpikeRule


class Guard:
    """Counts skipped steps in device memory: in all, in a row now, and the longest row since the last line."""

    def __init__(self, device: torch.device):
        self.counts = torch.zeros(3, device=device)

    def judge(self, loss: Tensor, norm: Tensor, *, empty: bool) -> Tensor:
        """1.0 where the step must be skipped, else 0.0; the same on every rank, as loss and norm are.

        empty: the step has no target token, so there is nothing to learn from and decay alone would be an update.
        """
        skip = torch.ones_like(loss) if empty else 1.0 - (loss.isfinite() & norm.isfinite()).float()
        total, row, longest = self.counts.unbind()
        row = (row + skip) * skip
        self.counts.copy_(torch.stack([total + skip, row, torch.maximum(longest, row)]))
        return skip

    def logged(self) -> None:
        """The longest row is watched from one line to the next, so that a resumed run is not ended by an old one."""
        self.counts[2] = 0


@dataclasses.dataclass
class Run:
    """What the loop works on. `done` is the number of completed steps."""

    config: Config
    world: World
    model: CausalLM
    optimizer: optim.Optimizer
    guard: Guard
    feed: Feed
    validation: Feed | None
    default_system: str | None
    backends: Backends
    plan: Forecast
    """What it will take."""
    spikes: SpikeRule
    host: HostMemory | None = None
    """Of offloaded activations."""
    saver: Saver | None = None
    """From `begin` on."""
    done: int = 0
    changes: Collection[str] = ()
    """Keys of the recipe that may differ from the checkpoint's."""
    back_to: Path | None = None
    """The checkpoint that a jump of the loss led back to,"""
    rollbacks: int = 0
    """and how often in a row."""
    lock: int | None = None
    """Descriptor that holds the run folder, on the first rank; the process's end frees it too."""

    @property
    def folder(self) -> Path:
        return Path(self.config.run.dir)

    @property
    def total(self) -> int:
        return self.feed.planner.total_steps

    def state(self, index: storage.Index | None = None) -> dict[str, Tensor]:
        """Every tensor of a checkpoint, by the name it has there; index: of one that is to be loaded."""
        state = self.optimizer.state() if index is None else self.optimizer.state_for(index.tensors.keys())
        return {**state, "guard.counts": self.guard.counts}


def prepare(settings: Config, world: World, *, resume: bool) -> Run:
    """Checks every input, cheapest first, then builds the model on the meta device, shards it and fills it.

    Has no collectives in it. Raises `UserError` with nothing written.
    """
    progress.mark("loading")
    check_folder(settings, resume=resume)
    model_config = hf.read_config(settings.model.path)
    backends = resolve_backends(settings, world.device)
    float8.check(settings.train, model_config, world.device)
    cost = flops.cost_model(model_config, settings.batch.max_tokens)
    data = open_data("data.path", settings.data.path, settings, model_config, world)
    planner = Planner(
        data.lengths, data.trained_counts, ranks=world.size, max_tokens=settings.batch.max_tokens,
        documents=settings.batch.documents, tokens=settings.batch.tokens, seed=settings.run.seed, cost=cost,
        epochs=settings.train.epochs, max_steps=settings.train.max_steps,
    )  # fmt: skip
    if resume:
        settings = with_format_of(settings, Path(settings.run.dir))
    plan = in_run.planned(settings, model_config, data.lengths, world)
    settings = with_format(settings, plan.setting.format)
    multiple = settings.train.row_multiple
    validation = None
    if settings.data.validation is not None:
        held_out = open_data("data.validation", settings.data.validation, settings, model_config, world)
        documents = min(len(held_out.lengths), max(world.size, settings.batch.documents or 96))
        try:
            validation_planner = Planner(
                held_out.lengths, held_out.trained_counts, ranks=world.size, max_tokens=settings.batch.max_tokens,
                documents=documents, seed=settings.run.seed, cost=cost,
            )  # fmt: skip
        except UserError as error:
            raise UserError(f"data.validation = {settings.data.validation!r}: {error}") from None
        validation = Feed(held_out, validation_planner, world.rank, world.device, multiple)
    system = default_system(settings.export.default_system, data.info.system)
    if world.is_first:
        preflight.check_exports(settings, system)
    with torch.device("meta"):
        model = CausalLM(model_config, backends)
    sources = hf.check_weights(model, settings.model.path)
    if settings.optim.format in optim.BF16_WEIGHTS:
        model.to(torch.bfloat16)
    float8.convert(model, settings.train.float8, emulate=world.device.type == "cpu")
    host = parallel.shard(model, world, settings, plan.setting.policies)
    model.to_empty(device=world.device)
    optimizer = optim.Optimizer(
        model.named_parameters(),
        settings.optim,
        "reference" if backends.kernels == "reference" else "auto",
        world.host_mesh,
    )
    hf.load_weights(model, settings.model.path, sources, optimizer.write)
    feed = Feed(data, planner, world.rank, world.device, multiple)
    guard = Guard(world.device)
    spikes = SpikeRule(settings.train.spike_factor)
    return Run(settings, world, model, optimizer, guard, feed, validation, system, backends, plan, spikes, host)


def with_format_of(settings: Config, folder: Path) -> Config:
    """The settings with the optimizer's format of the run that is to be resumed, where they leave it open."""
    written = folder / "config.toml"
    if settings.optim.format != "auto" or not written.exists():
        return settings
    return with_format(settings, config.load(written).optim.format)


def resolve_backends(settings: Config, device: torch.device) -> Backends:
    """`UserError` for one that cannot run here."""
    try:
        kernels_backend = resolve(settings.kernels.backend, device)
    except ValueError as error:
        raise UserError(f"kernels.backend = {settings.kernels.backend!r}: {error}; choose another, or auto") from None
    return Backends(
        attention.resolve_backend(settings.attention.backend, device),
        kernels_backend,
        settings.kernels.head_chunk_mib * 2**20,
        getattr(torch, settings.kernels.logits),
    )


def check_folder(settings: Config, *, resume: bool) -> None:
    """`UserError` where run.dir holds a run that is not to be resumed, or files in the place of its folders."""
    folder = Path(settings.run.dir)
    checkpoints = folder / "checkpoints"
    if not resume and ((folder / "config.toml").exists() or storage.step_folders(checkpoints)):
        raise UserError(
            f"run.dir = {str(folder)!r} holds a run already: go on with --resume auto, or name another folder"
        )
    for inside in (checkpoints, folder / "export", folder / "tensorboard"):
        if (inside.exists() or inside.is_symlink()) and not inside.is_dir():
            raise UserError(f"{inside}: is no folder, and the run needs one there; remove it")


def open_data(key: str, folder: str, settings: Config, model: ModelConfig, world: World) -> TokenDataset:
    """A prepared data set, refused where it does not belong to the model. key: the setting that names it.

    One process of each host reads all of it against its checksums: a second for each GB, and later no step reads a
    token that nobody wrote.
    """
    data = TokenDataset.open(folder, verify=world.local_rank == 0)
    remedy = f"prepare it again: skytrain prep tokenize ... --model {settings.model.path}"
    for what, theirs, ours in zip(
        ("tokenizer.json", "chat template"),
        (data.info.tokenizer_sha256, data.info.chat_template_sha256),
        tokenizer_digest(settings.model.path),
        strict=True,
    ):
        if theirs != ours:
            raise UserError(
                f"{key} = {folder!r}: made with another {what} than that of {settings.model.path}; {remedy}"
            )
    if data.info.max_token_id >= model.vocab_size:
        raise UserError(
            f"{key} = {folder!r}: holds token id {data.info.max_token_id}, but the model's vocab_size is "
            f"{model.vocab_size}; {remedy}"
        )
    return data


def begin(run: Run, *, resume: bool, changes: Collection[str] = ()) -> list[str]:
    """Opens the run folder, and loads the newest checkpoint when resuming. Returns lines that tell what was chosen.

    changes: keys of the recipe that may differ from what the checkpoint was made by. `UserError` on all ranks where the
    checkpoint is of other steps than this run's, or the folder cannot be made or is another process's.
    """
    lines = []
    parallel.together(lambda: claim_folder(run, resume=resume))
    settings = run.config.checkpoint
    root = run.folder / "checkpoints"
    run.saver = Saver(root, run.world, keep=settings.keep, asynchronous=settings.asynchronous)
    if resume:
        run.changes = changes
        found, told = restore(run)
        lines += told
        lines.append(
            "resume: no complete checkpoint, so this run starts at step 0" if found is None else f"resume: from {found}"
        )
    parallel.together(lambda: check_disk(run))
    parallel.together(lambda: write_recipe(run))
    return lines + describe(run)


def restore(run: Run) -> tuple[Path | None, list[str]]:
    """The run as its newest checkpoint has it; the folder, None where there is none, and lines that tell of it.
    Collective. Raises as `begin`."""
    told = []

    def tensors_for(index: storage.Index, found: Path) -> dict[str, Tensor]:
        told[:] = resumption.check(run.config, index.scalars, steps_follow_from(run), run.total, found, run.changes)
        return run.state(index)

    found, scalars, passed_over = checkpoint.resume(run.folder / "checkpoints", tensors_for)
    if found is not None:
        run.optimizer.loaded()
        run.done = scalars["step"]
        run.spikes.load(scalars["spikes"])
        run.saver.current = Saved(run.done, found, pause=0.0)
        if not passed_over:
            # A kill may have come between this checkpoint and the end of the oldest one.
            parallel.together(lambda: retain(run, found))
    return found, [f"resume: passed over {folder.name}: {reason}" for folder, reason in passed_over] + told


def retain(run: Run, found: Path) -> None:
    if run.world.is_first:
        with writing(run):
            storage.retain(found.parent, run.config.checkpoint.keep, found)


def steps_follow_from(run: Run) -> dict[str, object]:
    """What decides which documents a step takes, and what the model makes of them.

    Ranks and rows may change: they divide the same step otherwise.
    """
    c = run.config
    return {
        "run.seed": c.run.seed,
        "batch.documents": c.batch.documents,
        "batch.tokens": c.batch.tokens,
        "data.path": run.feed.dataset.sha256,
        "model.path": run.model.config.as_json(),
    }


def claim_folder(run: Run, *, resume: bool) -> None:
    """Makes the run folder and takes it for this run, on the first rank: two runs would mix their files in it."""
    if not run.world.is_first:
        return
    with writing(run):
        run.folder.mkdir(parents=True, exist_ok=True)
        run.lock = lock(run.folder)
    if run.lock is None:
        raise UserError(f"run.dir = {run.config.run.dir!r}: another run is at work in it; name another folder")
    check_folder(run.config, resume=resume)  # Another run may have begun, and ended, since `prepare` looked.


def check_disk(run: Run) -> None:
    if run.world.is_first:
        with writing(run):
            preflight.check_disk(run.config, run.state(), done=run.done, total=run.total)


def write_recipe(run: Run) -> None:
    """The resolved recipe into the run folder, on the first rank."""
    if not run.world.is_first:
        return
    with writing(run):
        partial = run.folder / "config.toml.tmp"
        partial.write_text(config.dumps(run.config), encoding="utf-8")
        os.replace(partial, run.folder / "config.toml")


@contextlib.contextmanager
def writing(run: Run) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"run.dir = {run.config.run.dir!r}: {unwritten(error)}") from None


def describe(run: Run) -> list[str]:
    c, model, world = run.config, run.model, run.world
    info = run.feed.dataset.info
    parameters = sum(math.prod(p.shape) for p in model.parameters())
    batch = f"{c.batch.documents} documents" if c.batch.documents else f"{c.batch.tokens:,} tokens"
    lines = [
        f"model {c.model.path}: {parameters:,} parameters, {model.config.model_type}, {c.train.dtype}",
        f"data {c.data.path}: {info.n_docs:,} documents, {info.n_tokens:,} tokens, {info.n_trained:,} trained",
        f"{world.size} rank(s) on {world.device.type}, {torch.get_num_threads()} CPU thread(s) each; "
        f"attention {run.backends.attention}, kernels {run.backends.kernels}, torch {torch.__version__}",
        f"{run.total:,} steps of {batch}, rows of at most {c.batch.max_tokens:,} tokens",
        f"optimizer {c.optim.name}, states {c.optim.format}",
        *in_run.lines(run.plan),
        *parallel.crowded(world),
    ]
    longest = int(run.feed.dataset.lengths.max())
    if longest > model.config.max_position_embeddings:
        lines.append(
            f"warning: documents have up to {longest:,} tokens, the model's max_position_embeddings is "
            f"{model.config.max_position_embeddings:,}"
        )
    return lines


def save(run: Run) -> None:
    """Begins a checkpoint of the run as it is. Collective."""
    scalars = {
        "step": run.done,
        "total": run.total,
        "recipe": config.flat(run.config),
        "spikes": run.spikes.state(),
        **steps_follow_from(run),
    }
    run.saver.save(run.done, run.state(), scalars)


def saved(run: Run) -> Path:
    """The folder of the checkpoint that was begun last, complete on disk. `UserError` where it could not be written."""
    last = run.saver.wait()
    if last.problem is not None:
        raise UserError(last.problem)
    return last.folder


def write_export(run: Run) -> Path:
    """The model as it is, as a Hugging Face folder. Collective: every rank takes part in gathering each tensor."""
    progress.mark("exporting")
    out = run.folder / "export" / f"step-{run.done:08d}"
    # A run that resumed from before this step has made the folder once already, with the same content. All ranks must
    # decide alike, so the first one looks.
    there = [(out / "config.json").exists()]
    dist.broadcast_object_list(there, src=0)
    if there[0]:
        return out
    dtype = getattr(torch, run.config.export.dtype)
    return export(
        model_tensors(run.model, dtype, run.optimizer.master), run.config.model.path, out, dtype=dtype,
        default_system=run.default_system, is_writer=run.world.is_first,
    )  # fmt: skip


def document_lengths(run: Run, rows: list[list[np.ndarray]]) -> np.ndarray:
    """Tokens of each document of a step, over all ranks."""
    return run.feed.dataset.lengths[np.concatenate([documents for ranks in rows for documents in ranks])]
