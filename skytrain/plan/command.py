"""`skytrain plan RECIPE`: memory, hours and money of a run before a machine is rented for it; and requests, tokens,
hours and money of a recipe of data preparation or evaluation, for which torch is not imported."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from skytrain import config
from skytrain.errors import UserError
from skytrain.plan import hardware, stages


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "plan",
        help="forecast memory, hours and money of a recipe",
        description="Says what a run will take: memory of a GPU by kind and whether it fits, seconds of a step by "
        "kind, hours, tokens/s, MFU and money; and what else could be set. Of a recipe of data preparation or "
        "evaluation: requests, tokens, hours and money of each stage. Needs no GPU, no model and no data: see "
        "[plan] in the recipes.",
    )
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="TOML recipe, of training, prep or eval")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", help="settings in the recipe's place")
    parser.add_argument("--data", metavar="DIR", help="prepared data set (default: data.path, else drawn lengths)")
    parser.add_argument("--gpu", metavar="ID", help="row of the hardware table (default: plan.gpu)")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs in all (default: plan.gpus)")
    parser.add_argument("--price", type=float, metavar="P", help="of a GPU for an hour (default: the recipe's)")
    parser.add_argument("--json", action="store_true", help="print JSON, with every alternative")
    parser.add_argument("--trace", action="store_true", help="check the memory by a trace of the step (minutes)")
    parser.add_argument("--calibrate", action="store_true", help="measure this machine and write a row of the table")
    parser.add_argument("--out", metavar="FILE", type=Path, help="of --calibrate (default: the user's hardware.toml)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """UserError for a recipe, a data set or a device that is not right, or is not there."""
    if arguments.calibrate:
        return _calibrate(arguments)
    if arguments.out is not None:
        raise UserError("--out: is where --calibrate writes; give both, or neither")
    if arguments.recipe is None:
        raise UserError("skytrain plan: give a recipe, as in skytrain plan launch/recipes/sky_t1_32b.toml")
    if arguments.gpus is not None and arguments.gpus < 1:
        raise UserError(f"--gpus {arguments.gpus}: must be at least 1")
    if arguments.price is not None and not 0 <= arguments.price < float("inf"):
        raise UserError(f"--price {arguments.price}: must be a finite number, 0 or more")
    if stages.kind(arguments.recipe) != "training":
        return _stages(arguments)
    settings = config.load(arguments.recipe, arguments.overrides)
    gpus = settings.plan.gpus if arguments.gpus is None else arguments.gpus
    price = settings.log.price_per_gpu_hour if arguments.price is None else arguments.price
    device = hardware.find(arguments.gpu or settings.plan.gpu)
    if arguments.trace and settings.train.float8 is not None:
        raise UserError(
            "--trace runs eagerly, where float8's casts are not fused and their temporaries are the peak: add "
            "train.float8=none, which plans the same memory"
        )

    # Not at the top: `skytrain prep` runs where torch is absent.
    from rich.console import Console

    from skytrain.plan import forecast, report, workload

    model, named = workload.model_shapes(settings)
    lengths, drawn = workload.document_lengths(settings, arguments.data)
    one = forecast.forecast(settings, model, lengths, gpus, device, price)
    others = []
    if one.timing is not None:
        others = forecast.alternatives(settings, model, lengths, gpus, device, price)
    traced = _trace(settings, one) if arguments.trace else None
    if arguments.json:
        listed = [{**report.as_json(other.forecast), "label": other.label, "best": other.best} for other in others]
        found = {"model": named, "data": drawn, **report.as_json(one), "alternatives": listed}
        print(json.dumps(found | ({"traced_bytes": traced} if traced else {}), indent=1))
        return
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 120
    report.show(console, one, report.sources(one, named, drawn), others)
    if traced is not None:
        gib = hardware.GIB
        print(f"traced: {traced / gib:.2f} GiB of tensors at the peak, planned {one.memory.live / gib:.2f}")


def _stages(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from skytrain.plan.stages_report import show

    for option in ("data", "trace"):
        if getattr(arguments, option):
            raise UserError(f"--{option}: is of a recipe of training, and {arguments.recipe} is none; leave it out")
    one = stages.plan_recipe(
        arguments.recipe, arguments.overrides, gpu=arguments.gpu, gpus=arguments.gpus, price=arguments.price
    )
    if arguments.json:
        print(json.dumps(stages.as_json(one), indent=1))
        return
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 120
    show(console, one)


def _calibrate(arguments: argparse.Namespace) -> None:
    from skytrain.plan.calibrate import calibrate

    if arguments.recipe is not None:
        raise UserError("--calibrate measures the machine, and takes no recipe; plan afterwards with --gpu")
    row, path = calibrate(arguments.out)
    if int(os.environ.get("RANK", "0")) == 0:
        print(
            f"{row.name}: products {row.matmul_rate / 1e12:.4g} and attention {row.attention_rate / 1e12:.4g} TFLOP/s "
            f"({row.dtype}), memory {row.memory_rate / 1e9:.4g}, host {row.host_link_rate / 1e9:.4g} GB/s"
        )
        print(f"row {row.id!r} written to {path}: plan with --gpu {row.id}")


def _trace(settings: config.Config, one: object) -> int:
    """Bytes of tensors at the peak of a traced step of the fullest row."""
    from skytrain.plan.forecast import with_format
    from skytrain.plan.trace import trace

    s = one.setting
    return trace(with_format(settings, s.format), s.model, ranks=one.gpus, tokens=s.tokens, policies=s.policies).peak
