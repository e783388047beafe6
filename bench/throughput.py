"""Whether the trainer became slower: its speed over a plain loop's, beside that ratio when it was stored.

    python bench/throughput.py [--small] [--rounds N] [--workload NAME] [--store] [--baselines FILE]

Fixed small workloads on a CPU, fixed larger ones on a GPU. Three things run in turn in one process, a step at a time:
skytrain's step as its loop does it, the same step of a plain PyTorch and transformers loop (the same model, documents,
order and optimizer; a document a forward pass, since that keeps documents apart without padding), and a product of two
large matrices, for the machine's own rate. The losses of both must agree, or no time is told.

Two ratios are compared with those in bench/throughput.toml of this kind of machine: tokens/s over the plain loop's, and
the model's FLOP/s over the machine's. Each is a median over rounds, and a ratio is of one round, so that what disturbs
the machine disturbs both of its sides. Exit status 1 where one is under 90% of the stored one. On a kind of machine
that has none stored, nothing is compared, and it says so. --store writes what was found, to be committed with a change
that is meant to move it. --small: the first CPU workload alone, as CI runs it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import statistics
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import record
import torch
import torch.nn.functional as F
import transformers
from timing import summary
from torch import Tensor
from workload import IGNORED, Ours, Row, write_documents, write_model

from skytrain import config, flops
from skytrain.run import document_lengths

LIMIT = 0.9
BASELINES = Path(__file__).with_name("throughput.toml")
LARGEST_DIFFERENCE = {"float32": 1e-3, "bfloat16": 3e-2}
"""Of two losses, in nats a token, in each of the first steps."""
WARM_UP = 3
RATIOS = ("over plain", "over matmul")
OPTIM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}


@dataclass(frozen=True)
class Workload:
    shape: dict[str, int]
    documents: int
    """A step."""
    mean: int
    longest: int
    dtype: str = "float32"
    recompute: bool = False
    """Both sides: each layer again in backward."""
    settings: dict[str, object] = field(default_factory=dict)
    """Of skytrain's side alone, as section.key."""


def shape(vocab: int, hidden: int, inner: int, layers: int, heads: int, kv_heads: int) -> dict[str, int]:
    return {
        "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "max_position_embeddings": 32768,
    }  # fmt: skip


TINY = shape(4096, 256, 1024, 2, 4, 2)
SEVEN = shape(32768, 3584, 18944, 2, 28, 4)  # two of Qwen2.5-7B's layers, and a vocabulary that leaves room for both
CPU = {
    # Short steps in many rounds: what disturbs a small machine lasts for longer than a round.
    "all kept": Workload(TINY, 2, 240, 512, settings={"kernels.head_chunk_mib": 8}),
    "recomputed": Workload(TINY, 2, 240, 512, recompute=True, settings={"kernels.head_chunk_mib": 8}),
}
GPU = {
    "2 layers of 7B": Workload(SEVEN, 4, 4000, 8192, "bfloat16", settings={"train.compile": True}),
    "2 layers of 7B, recomputed, 8-bit moments": Workload(
        SEVEN, 4, 4000, 8192, "bfloat16", True, {"train.compile": True, "optim.format": "fp32_8bit"}
    ),
}


def settings_of(w: Workload, work: Path, device: str, steps: int) -> config.Config:
    values: dict[str, dict[str, object]] = {
        "run": {"dir": str(work / "run")},
        "model": {"path": str(work / "model")},
        "data": {"path": str(work / "data")},
        "batch": {"documents": w.documents, "max_tokens": w.documents * w.longest},
        "optim": {**OPTIM, "clip": 1.0, "format": "fp32"},
        "schedule": {"name": "constant"},
        "train": {"dtype": w.dtype, "device": device, "threads": torch.get_num_threads(), "max_steps": steps},
        "activations": {"checkpoint": "full" if w.recompute else "none"},
        "log": {"tensorboard": False},
    }
    for key, value in w.settings.items():
        section, _, name = key.partition(".")
        values.setdefault(section, {})[name] = value
    return config.resolve(values, "throughput.py")


class Plain:
    """The loop that one would write: a document a forward pass, their losses summed over the step's tokens."""

    def __init__(self, model: Path, w: Workload, device: torch.device):
        self.device, self.bf16 = device, w.dtype == "bfloat16"
        options = {"dtype": torch.float32, "attn_implementation": "sdpa"}
        self.model = transformers.AutoModelForCausalLM.from_pretrained(model, **options).to(device).train()
        if w.recompute:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True, **OPTIM)

    def step(self, rows: list[Row]) -> float:
        """Returns the loss, and with it waits for the device: as a logged line does."""
        targets = sum(label != IGNORED for row in rows for label in row["labels"][1:])
        total = torch.zeros((), device=self.device)
        for row in rows:
            loss = self._loss(row) / targets
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total.item()

    def _loss(self, row: Row) -> Tensor:
        ids, labels = (torch.tensor(row[name]).to(self.device) for name in ("input_ids", "labels"))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.model(input_ids=ids[None], use_cache=False).logits[0]
        return F.cross_entropy(logits[:-1].float(), labels[1:], ignore_index=IGNORED, reduction="sum")


def product(device: torch.device) -> tuple[Callable[[], None], float]:
    """(work, its FLOPs): of a length like a step's."""
    size, dtype, times = (8192, torch.bfloat16, 32) if device.type == "cuda" else (768, torch.float32, 10)
    x = torch.randn(size, size, device=device).to(dtype)
    out = torch.empty_like(x)

    def work() -> None:
        for _ in range(times):
            torch.mm(x, x, out=out)
        out[0, 0].item()

    return work, 2.0 * times * size**3


def timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def measure(w: Workload, work: Path, device: torch.device, rounds: int) -> dict[str, list[float]]:
    """RATIOS of each round, and tokens/s of both sides. SystemExit where their losses differ."""
    steps = WARM_UP + rounds
    write_model(work / "model", **w.shape)
    sizes = {"count": steps * w.documents, "mean": w.mean, "longest": w.longest, "vocab": w.shape["vocab_size"]}
    write_documents(work / "data", work / "model", **sizes)
    ours, plain = Ours(settings_of(w, work, device.type, steps)), Plain(work / "model", w, device)
    matmul, matmul_flops = product(device)
    found: dict[str, list[float]] = {name: [] for name in (*RATIOS, "skytrain, tokens/s", "plain, tokens/s")}
    losses = []
    for index, rows in enumerate(ours.documents()):
        turns: dict[str, Callable[[], object]] = {
            "ours": lambda: ours.round(1),
            "plain": lambda rows=rows: losses.append(plain.step(rows)),
            "matmul": matmul,
        }
        gc.collect()
        # The other way round in every other round, so that none always follows the same one.
        with contextlib.redirect_stdout(None):
            seconds = {name: timed(turns[name]) for name in list(turns)[:: 1 if index % 2 else -1]}
        if index < WARM_UP:
            continue
        tokens = sum(len(row["input_ids"]) for row in rows)
        lengths = document_lengths(ours.run, ours.run.feed.planner.step(index).rows)
        rate = flops.model_flops(ours.run.model.config, lengths) / seconds["ours"]
        values = (
            seconds["plain"] / seconds["ours"], rate / (matmul_flops / seconds["matmul"]),
            tokens / seconds["ours"], tokens / seconds["plain"],
        )  # fmt: skip
        for name, value in zip(found, values, strict=True):
            found[name].append(value)
    compare(ours.losses()[:4], losses[:4], LARGEST_DIFFERENCE[w.dtype])
    ours.close()
    return found


def compare(ours: list[float], theirs: list[float], limit: float) -> None:
    # So that NaN, which is in no order, is a difference.
    if not all(abs(a - b) <= limit for a, b in zip(ours, theirs, strict=True)):
        raise SystemExit(f"the losses differ, so the times say nothing: skytrain {ours}, plain {theirs}")


def kind_of(device: torch.device) -> str:
    """What decides the ratios: of a GPU its name, of a CPU its vector instructions and the threads used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU with {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def stored(baselines: Path) -> list[dict[str, object]]:
    return tomllib.loads(baselines.read_text(encoding="utf-8"))["stored"] if baselines.exists() else []


def expected(baselines: Path, kind: str, workload: str, ratio: str) -> float | None:
    """The ratio that is stored of this kind of machine."""
    rows = [row for row in stored(baselines) if (row["kind"], row["workload"]) == (kind, workload)]
    return rows[0][ratio] if rows else None


def store(baselines: Path, kind: str, workload: str, ratios: dict[str, float]) -> None:
    row: dict[str, object] = {"kind": kind, "workload": workload, **{name: round(r, 4) for name, r in ratios.items()}}
    rows = [old for old in stored(baselines) if (old["kind"], old["workload"]) != (kind, workload)]
    rows = sorted([*rows, row], key=lambda row: (row["kind"], row["workload"]))
    text = "# Written by bench/throughput.py --store; a ratio under 90% of these fails make bench-check.\n"
    for row in rows:
        text += "\n[[stored]]\n" + "".join(f'"{key}" = {config.toml(value)}\n' for key, value in row.items())
    baselines.write_text(text, encoding="utf-8")


def judge(kind: str, name: str, found: dict[str, list[float]], baselines: Path) -> bool:
    """Prints each ratio beside the stored one; whether all are at least LIMIT of it."""
    good = True
    for ratio in RATIOS:
        now, before = summary(found[ratio]), expected(baselines, kind, name, ratio)
        line = f"  {ratio:12} {now.median:7.3f} (p20 {now.p20:.3f}, p80 {now.p80:.3f})"
        if before is None:
            print(f"{line}, not compared: nothing is stored of this kind of machine, and --store writes it")
            continue
        part = now.median / before
        good &= part >= LIMIT
        verdict = "" if part >= LIMIT else f"; SLOWER than {LIMIT:.0%} of it"
        print(f"{line}, stored {before:.3f}: {part:.1%} of it{verdict}")
    return good


def rows_of(kind: str, name: str, found: dict[str, list[float]]) -> list[dict[str, object]]:
    common = {"kind": kind, "workload": name}
    return [
        common | {"metric": metric, "round": i, "value": f"{value:.6g}"}
        for metric, values in found.items()
        for i, value in enumerate(values, 1)
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="the first CPU workload alone")
    parser.add_argument("--rounds", type=int, default=61, help="steps of each side that count, at least 3 (61)")
    parser.add_argument("--workload", help="one of them, by name")
    parser.add_argument("--store", action="store_true", help="write what was found, here and into bench/results")
    parser.add_argument(
        "--baselines", type=Path, default=BASELINES, help="file of stored ratios (bench/throughput.toml)"
    )
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() and not options.small else "cpu")
    workloads = dict(list(CPU.items())[:1]) if options.small else (GPU if device.type == "cuda" else CPU)
    if options.workload is not None and options.workload not in workloads:
        parser.error(f"--workload {options.workload!r}: give one of {', '.join(workloads)}")
    if options.rounds < 3:
        parser.error("--rounds: at least 3, since a median is taken of them")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    kind, good = kind_of(device), True
    print(kind)
    for name, workload in workloads.items():
        if options.workload not in (None, name):
            continue
        with tempfile.TemporaryDirectory(prefix="throughput-") as work:
            found = measure(workload, Path(work), device, options.rounds)
        print(f"{name}: {statistics.median(found['skytrain, tokens/s']):,.0f} tokens/s, {options.rounds} rounds")
        if options.store:
            medians = {ratio: statistics.median(found[ratio]) for ratio in RATIOS}
            store(options.baselines, kind, name, medians)
            if options.baselines == BASELINES:
                print(record.append("throughput", rows_of(kind, name, found)))
        good &= judge(kind, name, found, options.baselines)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
