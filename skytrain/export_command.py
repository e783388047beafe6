"""`skytrain export RUN [--step N] OUT`: a checkpoint as a Hugging Face folder, on one process without a GPU."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from skytrain import config
from skytrain.errors import UserError
from skytrain.help import HelpFormatter

if TYPE_CHECKING:
    from torch import Tensor


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "export",
        help="write a checkpoint as a Hugging Face folder",
        description="Writes the weights of a run's checkpoint, as the run's own export would have, into a new folder "
        "that transformers and vLLM read. Needs no GPU.",
        epilog="Example:\n  skytrain export runs/mine models/mine",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("folder", metavar="RUN", type=Path, help="run folder, with config.toml and checkpoints/")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to make")
    parser.add_argument(
        "--step", type=int, metavar="N", help="the checkpoint of this step (default: the newest complete one)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """UserError: no run, no complete checkpoint, a damaged one, or an `OUT` that cannot be made."""
    # Not at the top: `skytrain prep` runs where torch is absent.
    import torch

    from skytrain import checkpoint, storage
    from skytrain.data.dataset import TokenDataset
    from skytrain.export import default_system, export
    from skytrain.hf import read_config

    if not (arguments.folder / "config.toml").is_file():
        raise UserError(f"{arguments.folder}: no config.toml in it; give the folder that a run's run.dir named")
    settings = config.load(arguments.folder / "config.toml")
    root = arguments.folder / "checkpoints"
    found, passed_over = checkpoint.find(root, "newest" if arguments.step is None else arguments.step)
    for folder, reason in passed_over:
        print(f"passed over {folder.name}: {reason}")
    if found is None:
        raise UserError(f"{root}: no complete checkpoint; train until checkpoint.every steps are done, or to the end")
    scalars = storage.read_index(found, storage.read_marker(found)).scalars
    if scalars.get("model.path") != read_config(settings.model.path).as_json():
        raise UserError(
            f"{settings.model.path}: its config.json was another when {found} was written; put that one back"
        )
    of_data = TokenDataset.open(settings.data.path).info.system if settings.export.default_system == "dataset" else None
    dtype = getattr(torch, settings.export.dtype)
    out = export(
        weights(found, exact=dtype == torch.float32),
        settings.model.path,
        arguments.out,
        dtype=dtype,
        default_system=default_system(settings.export.default_system, of_data),
    )
    print(f"exported {found} to {out}")


def weights(folder: Path, *, exact: bool) -> Iterator[tuple[str, tuple[int, ...], Callable[[], Tensor]]]:
    """Name, shape and reader of each weight of a checkpoint. exact: with the remainder, where the weights are split."""
    from skytrain import checkpoint
    from skytrain.kernels.quantize import join

    prefix = "optim.remainder."
    remainders = {
        name.removeprefix(prefix): fetch
        for name, _, fetch in (checkpoint.read_tensors(folder, prefix) if exact else ())
    }
    for name, shape, fetch in checkpoint.read_tensors(folder, "model."):
        name = name.removeprefix("model.")
        rest = remainders.get(name)
        yield name, shape, fetch if rest is None else lambda fetch=fetch, rest=rest: join(fetch(), rest())
