"""Checks that a user runs on their own model and data before they trust a run with them. Each ends in one figure.

Bounds. In fp32 two right orders of summation differ by a few 1e-7 of a mean over tokens, and by some 1e-6 after tens of
layers; in bf16 a product's inputs are rounded to 2^-9 of themselves, of which a mean over a step's tokens keeps little.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import torch

from skytrain import checkpoint, config, hf, parallel
from skytrain.config import Config
from skytrain.data.batch import pack_row
from skytrain.data.dataset import TokenDataset
from skytrain.errors import UserError
from skytrain.export import export, model_tensors
from skytrain.feed import Feed, Row
from skytrain.verify_worker import loss_and_norm, started

LOSS_BOUND = {"float32": 1e-5, "bfloat16": 2e-3}
NORM_BOUND = {"float32": 1e-4, "bfloat16": 1e-2}
LOGIT_BOUND = 1e-4
"""Of the largest logit, in fp32."""
LONGEST = 512
"""Tokens of the document whose logits are compared: transformers holds them all."""


class Verdict(NamedTuple):
    good: bool
    figure: str


def with_settings(settings: Config, **sections: dict[str, object]) -> Config:
    """The settings, with some of some sections replaced."""
    changed = {name: msgspec.structs.replace(getattr(settings, name), **values) for name, values in sections.items()}
    return msgspec.structs.replace(settings, **changed)


def check_export(settings: Config, folder: Path, ranks: int, steps: int) -> Verdict:
    """The untrained model, exported, is the source's tensors, and computes in transformers what it does here."""
    try:
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar
    except ImportError:
        raise UserError("verify export: needs transformers as the other side: pip install transformers") from None
    disable_progress_bar()
    dtype = getattr(torch, settings.export.dtype)
    plain = {"float8": None, "dtype": "float32", "compile": False}
    run = started(with_settings(settings, train=plain, optim={"format": "fp32"}))
    out = export(model_tensors(run.model, dtype), settings.model.path, folder / "export", dtype=dtype)
    run.feed.close()
    parallel.stop()
    wrong = _other_tensors(Path(settings.model.path), out, dtype)
    run = started(with_settings(settings, train=plain, optim={"format": "fp32"}, model={"path": str(out)}))
    tokens = next(run.feed.dataset.document(i)[0] for i in range(len(run.feed.dataset)))[:LONGEST]
    ids = torch.from_numpy(tokens.astype(np.int64)).to(run.world.device)
    ends = torch.tensor([0, len(ids)], dtype=torch.int32, device=ids.device)
    with torch.no_grad():
        ours = run.model(ids, torch.arange(len(ids), device=ids.device), ends, len(ids)).cpu()
    run.feed.close()
    parallel.stop()
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)(ids[None].cpu()).logits[0].float()
    difference, scale = (ours - theirs).abs().max().item(), theirs.abs().max().item()
    good = not wrong and difference <= LOGIT_BOUND * scale
    tensors = (
        f"{len(wrong)} tensors differ from the source, {wrong[0]} first" if wrong else "every tensor as the source"
    )
    return Verdict(
        good,
        f"{tensors}; largest logit difference to transformers {difference:.2e} over {len(ids)} tokens "
        f"(bound {LOGIT_BOUND * scale:.1e})",
    )


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
    run = started(settings)
    plan = run.feed.planner.step(0)
    packed = loss_and_norm(run, run.feed[0].rows)
    documents = np.concatenate([row for ranks_of in plan.rows for row in ranks_of])
    alone = loss_and_norm(run, [_row(run.feed, int(document)) for document in documents])
    run.feed.close()
    parallel.stop()
    rows = sum(len(row) > 0 for ranks_of in plan.rows for row in ranks_of)
    return _close(packed, alone, settings, f"{len(documents)} documents in {rows} row(s) against each alone")


def _row(feed: Feed, document: int) -> Row:
    packed = pack_row(feed.dataset, np.array([document]), feed.multiple)
    arrays = {name: value for name, value in vars(packed).items() if name != "max_seqlen"}
    moved = {name: torch.from_numpy(value).to(feed.device) for name, value in arrays.items()}
    return Row(**moved, max_seqlen=packed.max_seqlen)


def _close(one: tuple[float, float], other: tuple[float, float], settings: Config, what: str) -> Verdict:
    loss, norm = (abs(a - b) / max(abs(b), 1e-30) for a, b in zip(one, other))
    bounds = LOSS_BOUND[settings.train.dtype], NORM_BOUND[settings.train.dtype]
    # A comparison with NaN is false, so one is never good.
    return Verdict(
        loss <= bounds[0] and norm <= bounds[1],
        f"{what}: loss {other[0]:.4f} differs by {loss:.1e} (bound {bounds[0]:.0e}), "
        f"gradient norm {other[1]:.4f} by {norm:.1e} ({bounds[1]:.0e})",
    )


def check_ranks(settings: Config, folder: Path, ranks: int, steps: int) -> Verdict:
    """The first step's loss and gradient norm of several processes and of one."""
    seen = []
    for count in (ranks, 1):
        _processes("step", settings, folder, count, folder / f"step-{count}.json")
        seen.append(tuple(json.loads((folder / f"step-{count}.json").read_text(encoding="utf-8"))))
    return _close(seen[0], seen[1], settings, f"{ranks} ranks against 1")


def check_resume(settings: Config, folder: Path, ranks: int, steps: int) -> Verdict:
    """A run of `steps` steps, and one that goes on from the checkpoint in its middle."""
    half = max(steps // 2, 1)
    whole = with_settings(
        settings,
        run={"dir": str(folder / "whole")},
        train={"max_steps": steps, "validate_every": None},
        checkpoint={"every": half, "keep": steps},
        export={"at_end": False, "every": None},
        log={"every": 1, "tensorboard": False},
    )
    _processes("train", whole, folder, ranks)
    middle = folder / "whole" / "checkpoints" / f"step-{half:08d}"
    last = max((folder / "whole" / "checkpoints").iterdir())
    if last == middle:
        raise UserError(f"verify resume: the data set makes only {half} step(s): lower batch.documents or --steps")
    shutil.copytree(middle, folder / "resumed" / "checkpoints" / middle.name)
    shutil.copy(folder / "whole" / "config.toml", folder / "resumed")
    _processes("train", with_settings(whole, run={"dir": str(folder / "resumed")}), folder, ranks)
    return _same_checkpoints(last, folder / "resumed" / "checkpoints" / last.name, half)


def _same_checkpoints(one: Path, other: Path, half: int) -> Verdict:
    there = {name: fetch for name, _, fetch in checkpoint.read_tensors(other)}
    names, wrong = 0, []
    for name, _, fetch in checkpoint.read_tensors(one):
        names += 1
        tensor = fetch()
        bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (tensor, there[name]())]
        if not torch.equal(*bits):
            wrong.append(name)
    told = f"{len(wrong)} differ, {wrong[0]} first" if wrong else "the same to the bit"
    steps = checkpoint.storage.step_of(one)
    return Verdict(not wrong, f"{steps} steps, and resumed after {half}: {names} tensors, {told}")


def check_data(settings: Config, folder: Path, ranks: int, steps: int) -> Verdict:
    """Every byte against its checksum, the ledger's sums, and the counts recomputed from the shards."""
    try:
        data = TokenDataset.open(settings.data.path, verify=True)
    except UserError as error:
        return Verdict(False, str(error))
    info, trained, tokens = data.info, int(data.trained_counts.sum()), int(data.lengths.sum())
    problems = [problem for problem in [info.ledger.problem()] if problem]
    for what, here, there in (
        ("tokens", tokens, info.n_tokens),
        ("documents", len(data), info.ledger.rows.kept),
        ("trained tokens", trained, info.ledger.tokens.trained),
    ):
        if here != there:
            problems.append(f"the shards hold {here:,} {what}, and dataset.json says {there:,}")
    nothing = int((data.trained_counts == 0).sum())
    if nothing:
        problems.append(f"{nothing:,} documents have no target")
    figure = (
        f"{info.ledger.rows.read:,} rows read, {len(data):,} kept; {tokens:,} tokens, {trained:,} of them trained "
        f"({trained / tokens:.1%})"
    )
    return Verdict(not problems, "; ".join([figure, *problems]))


CHECKS = {
    "data": check_data,
    "export": check_export,
    "packing": check_packing,
    "ranks": check_ranks,
    "resume": check_resume,
}


def examples(settings: Config, count: int) -> Iterator[list[tuple[str, bool]]]:
    """Of the first documents, decoded: (text, whether it is trained), span after span."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(settings.model.path) / "tokenizer.json"))
    data = TokenDataset.open(settings.data.path)
    for index in range(min(count, len(data))):
        tokens, trained = data.document(index)
        cuts = [0, *(np.flatnonzero(np.diff(trained)) + 1).tolist(), len(tokens)]
        yield [
            (tokenizer.decode(tokens[start:end].tolist(), skip_special_tokens=False), bool(trained[start]))
            for start, end in itertools.pairwise(cuts)
            if end > start
        ]


def _processes(mode: str, settings: Config, folder: Path, count: int, *out: Path) -> None:
    """Runs the worker in `count` processes. UserError, with the last it said, where they do not end well."""
    recipe = folder / f"{mode}.toml"
    recipe.write_text(config.dumps(settings), encoding="utf-8")
    launcher = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    worker = Path(__file__).with_name("verify_worker.py")
    # A script's folder comes first on its path, and ours has modules of common names.
    environment = os.environ | {"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(worker), mode, str(recipe), *map(str, out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("error: ")] or done.stderr.splitlines()[
            -1:
        ]
        raise UserError(f"verify: {count} process(es) failed: {' '.join(said).removeprefix('error: ')}")
