"""What `skytrain plan` says of the recipes, and its memory beside that of a traced step of the whole model.

    python bench/plan.py [--untraced] [--only stages]

Each case is the command as a user types it; those of STAGES are recipes of preparation and evaluation. A trace takes
one or two minutes, and about 1 GB; float8 has none (`skytrain plan` says why), and plans the memory of its case
without it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import record

RECIPES = Path(__file__).parent.parent / "launch" / "recipes"
GIB = 2**30
SELECTIVE = ["activations.checkpoint=selective", "activations.offload=[]"]
CASES: dict[str, list[str]] = {
    "32B on 8, as the recipe is": ["sky_t1_32b.toml"],
    "32B on 8, full recomputation": ["sky_t1_32b.toml", "activations.checkpoint=full", "activations.offload=[]"],
    "32B on 8, attention kept": ["sky_t1_32b.toml", *SELECTIVE, 'activations.keep=["attention"]'],
    "32B on 8, budget_gib = auto": ["sky_t1_32b.toml", *SELECTIVE, "activations.budget_gib=auto"],
    "32B on 8, split_8bit, attention kept": [
        "sky_t1_32b.toml", *SELECTIVE, 'activations.keep=["attention"]', "optim.format=split_8bit",
    ],
    "32B on 8, float8 tensorwise": ["sky_t1_32b.toml", "train.float8=tensorwise"],
    "32B on 8, float8 rowwise": ["sky_t1_32b.toml", "train.float8=rowwise"],
    "32B on 4, states on the host": ["sky_t1_32b.toml", "--gpus", "4", "optim.format=host"],
    "32B on 4, 8-bit states on the host": ["sky_t1_32b.toml", "--gpus", "4", "optim.format=host_8bit"],
    "32B on 8x A100 40 GB, states on the host": [
        "sky_t1_32b.toml", "--gpu", "a100-40gb", "optim.format=host", *SELECTIVE, "activations.budget_gib=auto",
    ],
    "7B on 1": ["sky_t1_7b.toml", "--gpus", "1"],
    "7B on 1, states on the host": ["sky_t1_7b.toml", "--gpus", "1", "optim.format=host"],
    "32B on 2 nodes of 8": ["sky_t1_32b.toml", "--gpus", "16", "parallel.nodes=2"],
    "32B on 2 nodes of 8, sharded over both": ["sky_t1_32b.toml", "--gpus", "16"],
    "32B on 4 nodes of 8": ["sky_t1_32b.toml", "--gpus", "32", "parallel.nodes=4"],
}  # fmt: skip
STAGES: dict[str, list[str]] = {"the data": ["prep/sky_t1.toml"], "the evaluation": ["eval_sky_t1.toml"]}


def plan(words: list[str], *, traced: bool) -> tuple[dict, float]:
    """(what the command says as JSON, seconds)."""
    command = [str(Path(sys.executable).with_name("skytrain")), "plan", str(RECIPES / words[0]), *words[1:], "--json"]
    begin = time.perf_counter()
    done = subprocess.run(command + ["--trace"] * traced, check=True, capture_output=True, text=True)
    return json.loads(done.stdout), time.perf_counter() - begin


def values(found: dict, seconds: float) -> dict[str, tuple[float, str]]:
    memory, timing = found["memory"], found["time"]
    live = memory["total"] - memory["bytes"]["buffers"]
    result = {
        "total": (memory["total"] / GIB, "GiB"),
        "spare": (memory["spare"] / 1e9, "GB"),
        "pinned on the host, a GPU": (memory["host"] / GIB, "GiB"),
        "step": (timing["seconds_a_step"], "s"),
        "run": (timing["hours"], "h"),
        "MFU": (100 * timing["mfu"], "%"),
        "tensors, planned": (live / GIB, "GiB"),
    }
    if timing["money"] is not None:
        result["money"] = (timing["money"], "USD")
    if "traced_bytes" in found:
        result["tensors, traced"] = (found["traced_bytes"] / GIB, "GiB")
        result["planned over traced"] = (100 * live / found["traced_bytes"], "%")
    return result | {"the command takes": (seconds, "s")}


def stage_values(found: dict, seconds: float) -> dict[str, tuple[float, str]]:
    """Of each stage or task that is planned, and of all."""
    result = {}
    for stage in found["stages"]:
        if stage["hours"] is not None:
            result[f"{stage['name']}, run"] = (stage["hours"], "h")
            result[f"{stage['name']}, money"] = (stage["money"], "USD")
        if "tokens_per_s" in stage:
            result[f"{stage['name']}, tokens out"] = (stage["tokens_per_s"], "1/s")
    return result | {
        "run": (found["hours"], "h"),
        "money": (found["money"], "USD"),
        "the command takes": (seconds, "s"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--untraced", action="store_true", help="the arithmetic alone")
    parser.add_argument("--only", choices=("stages", "nodes"), help="those of STAGES, or of several nodes")
    arguments = parser.parse_args()
    rows = []
    for case, words in (CASES | STAGES).items():
        if arguments.only and not (case in STAGES if arguments.only == "stages" else "nodes" in case):
            continue
        if case in STAGES:
            found = stage_values(*plan(words, traced=False))
        else:
            traced = not arguments.untraced and not any("float8" in word for word in words)
            found = values(*plan(words, traced=traced))
        print(case + ": " + ", ".join(f"{metric} {value:.5g} {unit}" for metric, (value, unit) in found.items()))
        rows += [
            {"case": case, "metric": metric, "value": f"{value:.6g}", "unit": unit}
            for metric, (value, unit) in found.items()
        ]
    print(record.append("plan", rows))


if __name__ == "__main__":
    main()
