"""Checks that a user runs on their own model and data before they trust a run with them. Each ends in one figure.

Bounds, none of them fitted to a measurement. u is the rounding of one number: 2^-24 in fp32, 2^-9 in bf16.

- Loss: a mean over tokens, so that independent roundings average out. fp32: 1e-5, which is 170 u, room for the sums of
  64 layers in another order. bf16: 2e-3, one u, as if no token's rounding averaged out.
- Gradient norm: fp32 1e-4, ten times the loss's, since backward passes through every layer a second time. bf16: 1e-2,
  what gradients added up in bf16 over 64 micro-batches are off by at most (LOG.md, split weights).
- Logits, a whole model in fp32: a dot product of n terms is off by about sqrt(n) u of its size, 4e-6 at n = 5,120, and
  64 layers of them by sqrt(64) times that, 3e-5 of the largest logit. Bound 1e-4; a single tensor that went through
  bf16 is 20 times that.

What the checks are there for is larger: a document that sees another, or a rank that counts twice, moves a loss or a
gradient by percents.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import torch

from skytrain import checkpoint, config, hf, parallel, storage
from skytrain.config import Config
from skytrain.data.batch import pack_row
from skytrain.data.chat import ChatTokenizer
from skytrain.data.dataset import TokenDataset
from skytrain.errors import UserError
from skytrain.export import export, model_tensors
from skytrain.feed import Feed, Row
from skytrain.run import Run
from skytrain.trainer import train_step
from skytrain.verify_worker import started

LOSS_BOUND = {"float32": 1e-5, "bfloat16": 2e-3}
NORM_BOUND = {"float32": 1e-4, "bfloat16": 1e-2}
LOGIT_BOUND = 1e-4
LONGEST = 512
"""Tokens of the document whose logits are compared: transformers holds them all."""

Numbers = tuple[float, float]
"""Loss and gradient norm of a step."""


class Verdict(NamedTuple):
    good: bool | None
    """None where the check was not run."""
    figure: str


class NotRun(UserError):
    """A check that cannot be made here, though nothing is wrong with the recipe."""


def with_settings(settings: Config, **sections: dict[str, object]) -> Config:
    """The settings, with some of some sections replaced."""
    changed = {name: msgspec.structs.replace(getattr(settings, name), **values) for name, values in sections.items()}
    return msgspec.structs.replace(settings, **changed)


def within(settings: Config, folder: Path) -> Config:
    """The recipe as every check takes it: in a folder of its own, where no run is yet, and on this machine alone."""
    return with_settings(
        settings, run={"dir": str(folder / "run")}, parallel={"nodes": 1}, data={"validation": None},
        train={"validate_every": None},
    )  # fmt: skip


def check_export(settings: Config, folder: Path, ranks: int, steps: int) -> Verdict:
    """The untrained model, exported, is the source's tensors, and computes in transformers what it does here."""
    try:
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar
    except ImportError:
        raise NotRun("needs transformers as the other side: pip install transformers") from None
    disable_progress_bar()
    settings, dtype = _plain(settings), getattr(torch, settings.export.dtype)
    with alone(settings) as run:
        out = export(model_tensors(run.model, dtype), settings.model.path, folder / "export", dtype=dtype)
    del run
    wrong = _other_tensors(Path(settings.model.path), out, dtype)
    ids = torch.from_numpy(TokenDataset.open(settings.data.path).document(0)[0][:LONGEST].astype(np.int64))
    ours = _logits(with_settings(settings, model={"path": str(out)}), ids)
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)(ids[None]).logits[0].float()
    difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    tensors = f"{len(wrong)} tensors differ from the source, {wrong[0]} first" if wrong else "all tensors as the source"
    return Verdict(
        not wrong and difference <= LOGIT_BOUND,
        f"{tensors}; logits differ from transformers' by {difference:.1e} of the largest (bound {LOGIT_BOUND:.0e}) "
        f"over {len(ids)} tokens",
    )


def _plain(settings: Config) -> Config:
    """In fp32 throughout, with no states of an optimizer."""
    settings = with_settings(
        settings,
        train={"dtype": "float32", "float8": None, "compile": False},
        optim={"name": "sgd", "format": "fp32"},
        kernels={"logits": "float32"},
        parallel={"reduce_dtype": "float32"},
    )
    if _on_gpus(settings):
        # Its faster back ends take 16-bit numbers only.
        settings = with_settings(settings, attention={"backend": "reference"})
    return msgspec.structs.replace(settings, activations=config.Activations())


def _logits(settings: Config, ids: torch.Tensor) -> torch.Tensor:
    """Of the trainer's model for one document. ids: int64 [T] -> fp32 [T, vocabulary], both on the CPU."""
    with alone(settings) as run, torch.no_grad():
        ids = ids.to(run.world.device)
        ends = torch.tensor([0, len(ids)], dtype=torch.int32, device=ids.device)
        return run.model(ids, torch.arange(len(ids), device=ids.device), ends, len(ids)).float().cpu()


def _other_tensors(source: Path, out: Path, dtype: torch.dtype) -> list[str]:
    """Names of exported tensors that are not the source's in `dtype`; one at a time is in memory."""
    stored, wrong = hf.stored_tensors(source), []
    for name, exported in hf.stored_tensors(out).items():
        with hf.opened(exported.path) as file, hf.opened(stored[name].path) as original:
            if not torch.equal(file.get_tensor(name), original.get_tensor(name).to(dtype)):
                wrong.append(name)
    return wrong


def check_packing(settings: Config, folder: Path, ranks: int, steps: int) -> Verdict:
    """The first step's loss and gradient, its documents packed into rows and each in a row of its own."""
    # A scale of float8 is of all tokens of a row.
    with alone(with_settings(settings, train={"float8": None})) as run:
        step = run.feed[0]
        rows = [row for micro_batch in step.plan.rows for row in micro_batch]
        documents = np.concatenate(rows)
        apart = dataclasses.replace(step, rows=[_row(run.feed, int(document)) for document in documents])
        # At a learning rate of 0 the weights stay as they are.
        packed, each = (tuple(number.item() for number in train_step(run, s, 0.0)) for s in (step, apart))
    what = f"{len(documents)} documents in {len(rows)} row(s) against each alone"
    return _close([packed], [each], settings, what)


def _row(feed: Feed, document: int) -> Row:
    packed = pack_row(feed.dataset, np.array([document]), feed.multiple)
    arrays = {name: value for name, value in vars(packed).items() if name != "max_seqlen"}
    moved = {name: torch.from_numpy(value).to(feed.device) for name, value in arrays.items()}
    return Row(**moved, max_seqlen=packed.max_seqlen)


def _close(some: Sequence[Numbers], others: Sequence[Numbers], settings: Config, what: str) -> Verdict:
    """Of the step that differs most."""
    pairs = zip(some, others, strict=True)
    each = np.array([[abs(a - b) / max(abs(b), 1e-30) for a, b in zip(*step, strict=True)] for step in pairs])
    loss, norm = each.max(axis=0)
    bounds = LOSS_BOUND[settings.train.dtype], NORM_BOUND[settings.train.dtype]
    # A maximum with NaN is NaN, and a comparison with it false, so one is never good.
    return Verdict(
        bool(loss <= bounds[0] and norm <= bounds[1]),
        f"loss differs by {loss:.1e} (bound {bounds[0]:.0e}), gradient norm by {norm:.1e} ({bounds[1]:.0e}): {what}, "
        f"loss {others[0][0]:.4f}",
    )


def check_ranks(settings: Config, folder: Path, ranks: int, steps: int) -> Verdict:
    """The first steps' losses and gradient norms of several processes and of one."""
    count = _count(settings, ranks)
    if count == 1:
        raise NotRun("one GPU is here, and several processes need one each; train.device=cpu compares on the CPU")
    settings = with_settings(settings, train={"float8": None})
    seen = []
    for processes in (count, 1):
        out = folder / f"steps-{processes}.json"
        _processes("steps", settings, folder, processes, out)
        seen.append(json.loads(out.read_text(encoding="utf-8")))
    return _close(*seen, settings, f"first {len(seen[1])} step(s) on {count} ranks against 1")


def check_resume(settings: Config, folder: Path, ranks: int, steps: int) -> Verdict:
    """A run of `steps` steps, and one that goes on in other processes from the checkpoint in its middle."""
    half, count = steps // 2, _count(settings, ranks)
    whole = with_settings(
        settings,
        run={"dir": str(folder / "whole")},
        train={"max_steps": steps, "deterministic": True},
        checkpoint={"every": half, "keep": steps},
        export={"at_end": False, "every": None},
        log={"every": 1, "tensorboard": False},
    )
    _processes("train", whole, folder, count)
    middle = folder / "whole" / "checkpoints" / f"step-{half:08d}"
    last = max(middle.parent.iterdir())
    if last <= middle:
        raise UserError(
            f"--steps {steps}: the data set makes {storage.step_of(last)} step(s), and the run is to be "
            f"resumed after {half}; lower batch.documents, or --steps"
        )
    there = folder / "resumed" / "checkpoints"
    there.mkdir(parents=True)
    middle.rename(there / middle.name)
    (folder / "resumed" / "config.toml").write_bytes((folder / "whole" / "config.toml").read_bytes())
    _processes("train", with_settings(whole, run={"dir": str(folder / "resumed")}), folder, count)
    return _same_runs(last, there / last.name, half)


def _same_runs(one: Path, other: Path, half: int) -> Verdict:
    """Two runs' last checkpoints, and what they logged of the steps after `half`, the resumed run's second."""
    there = {name: fetch for name, _, fetch in checkpoint.read_tensors(other)}
    names, wrong = 0, []
    for name, _, fetch in checkpoint.read_tensors(one):
        names += 1
        bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (fetch(), there[name]())]
        if not torch.equal(*bits):
            wrong.append(name)
    logged = [_logged(folder.parents[1] / "metrics.jsonl", half) for folder in (one, other)]
    losses = " ".join("nan" if loss is None else f"{loss:.4f}" for loss, *_ in logged[1])
    told = f"{len(wrong)} differ, {wrong[0]} first" if wrong else "0 differ"
    same = "the same" if logged[0] == logged[1] else "other"
    return Verdict(
        not wrong and logged[0] == logged[1],
        f"{storage.step_of(one)} steps, and resumed after {half}: {names} tensors, {told}; {same} losses and gradient "
        f"norms logged: loss {losses}",
    )


def _logged(path: Path, after: int) -> list[list[float | None]]:
    """[loss, gradient norm, learning rate] of each step after `after`; None where one was not finite."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "loss" in line and line["step"] > after]
    return [[line[key] for key in ("loss", "grad_norm", "lr")] for line in steps]


def check_data(settings: Config, folder: Path, ranks: int, steps: int) -> Verdict:
    """Every byte against its checksum, the ledger's sums, and the counts against those of the shards."""
    if not (Path(settings.data.path) / "dataset.json").exists():
        TokenDataset.open(settings.data.path)  # Says what is missing.
    try:
        data = TokenDataset.open(settings.data.path, verify=True)
    except UserError as error:
        return Verdict(False, str(error))
    rows, tokens = data.info.ledger.rows, data.info.ledger.tokens
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in rows.dropped.items() if count)
    figure = (
        f"{rows.read:,} rows read = {rows.kept:,} kept + {sum(rows.dropped.values()):,} dropped"
        f"{f' ({reasons})' if reasons else ''}; {data.info.n_tokens:,} tokens = {tokens.trained:,} trained + "
        f"{tokens.context:,} context, as the shards hold them"
    )
    nothing = int((data.trained_counts == 0).sum())
    return Verdict(nothing == 0, f"{figure}; {nothing:,} documents have no target" if nothing else figure)


CHECKS = {
    "data": check_data,
    "export": check_export,
    "packing": check_packing,
    "ranks": check_ranks,
    "resume": check_resume,
}


def examples(settings: Config, count: int) -> Iterator[list[tuple[str, bool]]]:
    """Of the first documents, decoded: (text, whether it is trained), span after span. UserError without tokenizer."""
    tokenizer = ChatTokenizer.load(settings.model.path)
    data = TokenDataset.open(settings.data.path)
    for index in range(min(count, len(data))):
        tokens, trained = data.document(index)
        cuts = [0, *(np.flatnonzero(np.diff(trained)) + 1).tolist(), len(tokens)]
        spans = itertools.pairwise(cuts)
        yield [(tokenizer.decode(tokens[start:end]), bool(trained[start])) for start, end in spans]


def _on_gpus(settings: Config) -> bool:
    return settings.train.device == "cuda" or (settings.train.device == "auto" and torch.cuda.is_available())


def _count(settings: Config, ranks: int) -> int:
    """Processes that this machine can run beside each other."""
    # At least one, which then says that there is no GPU.
    return max(1, min(ranks, torch.cuda.device_count())) if _on_gpus(settings) else ranks


@contextlib.contextmanager
def alone(settings: Config) -> Iterator[Run]:
    """A run of this process alone, before its first step."""
    _free()
    run = started(settings)
    try:
        yield run
    finally:
        run.feed.close()
        parallel.stop()


def _free() -> None:
    """The memory of models before, which FSDP2's hooks hold in cycles; other processes may need it."""
    gc.collect()
    torch.cuda.empty_cache()


def _processes(mode: str, settings: Config, folder: Path, count: int, *out: Path) -> None:
    """Runs the worker in `count` processes. UserError where they find the user's mistake, RuntimeError with the end of
    what they said where they end otherwise."""
    _free()
    recipe = folder / f"{mode}.toml"
    recipe.write_text(config.dumps(settings), encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
    worker = Path(__file__).with_name("verify_worker.py")
    status, said = run_command([sys.executable, "-P", *launcher, str(worker), mode, str(recipe), *map(str, out)])
    if status == 0:
        return
    for line in said.splitlines():
        if line.startswith("error: "):
            raise UserError(line.removeprefix("error: "))
    raise RuntimeError(f"{count} process(es) of skytrain verify failed:\n{said[-8000:]}")


def run_command(command: list[str]) -> tuple[int, str]:
    """(exit status, stderr). Whatever ends this process before, ends the command, and what it started, first."""
    # A script's folder comes first on its path, and ours has modules of common names.
    environment = os.environ | {"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    with subprocess.Popen(command, env=environment, **options) as process:
        try:
            said = process.communicate()[1]
        except BaseException:
            # Not `kill`: torchrun's ranks would go on, in a folder that is about to be removed.
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=60)
            process.kill()
            raise
    return process.returncode, said
