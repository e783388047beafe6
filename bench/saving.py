"""What saving costs: python bench/saving.py [--rounds 15] [--large]

Two ranks on the CPU, one thread each. Throughput: ten steps with a checkpoint begun before them, until it is on disk,
against ten without, in turn. With --large instead: a model of 2 GB of fp32 weights; what each rank's memory grows by,
above what it holds already, while a checkpoint is copied and written, and while the model is exported.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import record
from ranks import run_ranks
from timing import summary

SMALL = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 8192}  # fmt: skip
LARGE = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 5, "num_attention_heads": 16,
         "num_key_value_heads": 4, "vocab_size": 50_000}  # fmt: skip
STEPS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="of ten steps with a checkpoint, and ten without (15)")
    parser.add_argument("--large", action="store_true", help="memory with 2 GB of weights, in the place of throughput")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="saving-") as folder:
        if arguments.large:
            rows = large(Path(folder))
        else:
            rows = throughput(Path(folder), arguments.rounds)
    for row in rows:
        print(f"{row['metric']}: {row['value']} {row['unit']}")
    print(record.append("saving", rows))


def inputs(folder: Path, shape: dict[str, int], documents: int) -> None:
    import workload

    workload.write_model(folder / "model", max_position_embeddings=4096, **shape)
    workload.write_documents(
        folder / "data", folder / "model", count=documents, mean=240, longest=1024, vocab=shape["vocab_size"]
    )


def settings(folder: Path, **more):
    import runs

    options = {"batch__documents": 4, "batch__max_tokens": 1024, "checkpoint__keep": 1, "export__dtype": "bfloat16"}
    return runs.settings(folder / "model", folder / "data", folder / "run", **options, **more)


def throughput(folder: Path, rounds: int) -> list[dict[str, object]]:
    inputs(folder, SMALL, 4 * 2 * STEPS * (rounds + 1))
    results = run_ranks(2, rounds_of_steps, settings(folder), rounds, timeout=3600, process_group=False)
    plain, saving, pauses = results[0]
    ratios = [b / a for a, b in zip(plain, saving)]
    rows = []
    for name, values, unit in (
        ("ten steps", plain, "s"),
        ("ten steps and a checkpoint", saving, "s"),
        ("time with over without a checkpoint", ratios, "1"),
        ("pause", pauses, "s"),
    ):
        for part, value in vars(summary(values)).items():
            rows.append({"metric": f"{name}, {part}", "value": f"{value:.4g}", "unit": unit})
    return rows


def rounds_of_steps(c, rounds: int) -> tuple[list[float], list[float], list[float]]:
    """Seconds of ten steps without, and with, a checkpoint that is on disk at their end; and its pauses."""
    from workload import Ours

    from skytrain.run import save, saved

    ours = Ours(c)
    plain, saving, pauses = [], [], []
    for i in range(rounds + 1):
        first, since = ours.round(STEPS), time.perf_counter()
        save(ours.run)
        ours.round(STEPS)
        saved(ours.run)
        if i:  # The first one makes the buffers.
            plain.append(first)
            saving.append(time.perf_counter() - since)
            pauses.append(ours.run.saver.current.pause)
    ours.close()
    return plain, saving, pauses


def large(folder: Path) -> list[dict[str, object]]:
    inputs(folder, LARGE, 16)
    rows = []
    for rank, values in enumerate(run_ranks(2, memory, settings(folder), timeout=3600, process_group=False)):
        for metric, (value, unit) in values.items():
            rows.append({"metric": f"rank {rank}, {metric}", "value": f"{value:.4g}", "unit": unit})
    return rows


def memory(c) -> dict[str, tuple[float, str]]:
    import runs

    from skytrain.optim import local
    from skytrain.run import begin, save, saved, write_export

    run = runs.start(c)
    begin(run, resume=False)
    gc.collect()
    # Every page of the state is touched, so that none is counted as new later.
    for tensor in run.state().values():
        local(tensor).add_(0)
    state = sum(local(tensor).nbytes for tensor in run.state().values())
    largest = max(p.numel() for p in run.model.parameters()) * 4
    with Growth() as saving:
        save(run)
        saved(run)
    with Growth() as exporting:
        write_export(run)
    return {
        "weights": (sum(p.numel() for p in run.model.parameters()) * 4 / 1e9, "GB"),
        "state": (state / 1e9, "GB"),
        "saving": (saving.bytes / 1e9, "GB"),
        "saving, over the rank's state": (saving.bytes / state, "1"),
        "largest tensor, fp32": (largest / 1e9, "GB"),
        "exporting": (exporting.bytes / 1e9, "GB"),
        "exporting, over the largest tensor": (exporting.bytes / largest, "1"),
    }


class Growth:
    """The most by which this process's own memory (no mapped files) grew meanwhile."""

    def __enter__(self) -> Growth:
        self.before = self.highest = anonymous_bytes()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.ended.set()
        self.thread.join()
        self.bytes = self.highest - self.before

    def _look(self) -> None:
        while not self.ended.wait(0.002):
            self.highest = max(self.highest, anonymous_bytes())


def anonymous_bytes() -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
