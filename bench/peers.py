"""Tokens/s and losses beside TRL's SFTTrainer: the same tiny model, documents, batch and precision, on a CPU.

    python bench/peers.py [--precision float32|bfloat16] [--rounds N] [--setting NAME]

A Qwen2 of 4 layers and hidden size 256 (vocabulary and MLP as wide beside it as Qwen2.5-32B's) is trained on
documents whose lengths are those of bench/packing.py over 16: lognormal with sigma 0.65, at most 1,024 tokens, a mean
of 281. A step takes 8 of them, the same in the same order on both sides. Both sides run in this process on the same
threads, with fused AdamW, clipping, a constant rate, no recomputation, and a logged line every step. skytrain's
layers are compiled, as in its recipes; TRL's are where that is the faster.

First TRL is tried in each of its settings that keeps documents apart, which is checked: the logits of documents laid
out together equal those of each alone. The fastest with the same documents a step is the one to beat. Then both sides
train in turn, a round of a few steps each; the first round warms up and is not counted, but its losses must agree
before anything is timed. tokens/s counts the documents' own tokens; its clock runs from one logged line to another
(reading data, logging and Python included). In bf16 both keep fp32 master weights: TRL by autocast, skytrain by FSDP2.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import peer_trl
import record
import torch
import transformers
from workload import Ours, Row, token_counts, write_documents, write_model

from skytrain import config

VOCAB, LONGEST, DOCUMENTS = 8192, 1024, 8
SHAPE = {
    "vocab_size": VOCAB, "hidden_size": 256, "intermediate_size": 1408, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": LONGEST,
}  # fmt: skip
OPTIM = config.Optim(lr=1e-3, format="fp32")
# TRL's bf16 steps are slow here. Eight of them are also as many as can be compared: bf16's rounding grows through the
# optimizer, and from the ninth step on either side is further from fp32's losses than LARGEST_DIFFERENCE.
STEPS_A_ROUND = {"float32": 4, "bfloat16": 1}
SURVEY_STEPS = {"float32": 4, "bfloat16": 2}
LARGEST_DIFFERENCE = 1e-3
"""Of two losses, in nats a token."""


def settings(work: Path, precision: str, steps: int, threads: int) -> config.Config:
    return config.Config(
        run=config.Run(dir=str(work / f"run-{precision}")),
        model=config.Model(path=str(work / "model")),
        data=config.Data(path=str(work / "data")),
        batch=config.Batch(documents=DOCUMENTS, max_tokens=DOCUMENTS * LONGEST),
        optim=OPTIM,
        # Chunks of logits that stay in cache: as on a GPU, but for the size.
        kernels=config.Kernels(head_chunk_mib=8),
        schedule=config.Schedule(name="constant"),
        train=config.Train(dtype=precision, compile=True, device="cpu", threads=threads, max_steps=steps),
        log=config.Log(tensorboard=False),
    )


def survey(model: Path, documents: list[list[Row]], precision: str, names: list[str]) -> dict[str, np.ndarray]:
    """tokens/s of TRL in each setting, step by step; the first step of each warms up and is left out."""
    rates = {}
    for name in names:
        setting = peer_trl.SETTINGS[name]
        turns = peer_trl.Turns(1, between=lambda: None)
        made = peer_trl.trainer(model, documents, setting, bf16=precision == "bfloat16", optim=options())
        leak = peer_trl.largest_leak(made)
        if leak > 1e-5:
            raise SystemExit(f"TRL, {name}: logits in company differ from those alone by {leak:.1e} of the largest")
        made.add_callback(turns)
        made.train()
        if setting.same_steps:
            tokens = token_counts(documents)
        else:
            packed = token_counts([[row] for row in made.train_dataset])
            tokens = packed[: len(turns.seconds) * setting.micro_batches].reshape(-1, setting.micro_batches).sum(1)
        rates[name] = tokens[1:] / np.array(turns.seconds[1 : len(tokens)])
        print(f"  TRL, {name:30} {np.median(rates[name]):8,.0f} tokens/s  (leak {leak:.0e})", flush=True)
    return rates


def options() -> dict[str, object]:
    return {key: getattr(OPTIM, key) for key in ("lr", "betas", "eps", "weight_decay", "clip")}


def in_turn(ours: Ours, model: Path, precision: str, name: str, rounds: int) -> tuple[np.ndarray, np.ndarray, list]:
    """tokens/s of both sides by round, [2, rounds]; absolute differences of their losses by step; TRL's losses."""
    steps, documents = STEPS_A_ROUND[precision], ours.documents()
    made = peer_trl.trainer(model, documents, peer_trl.SETTINGS[name], bf16=precision == "bfloat16", optim=options())
    seconds: list[float] = []

    def our_turn() -> None:
        with contextlib.redirect_stdout(None):
            seconds.append(ours.round(steps))
        if len(seconds) == 1:
            compare(ours.losses(), turns.losses)

    turns = peer_trl.Turns(steps, our_turn)
    made.add_callback(turns)
    made.train()
    tokens = token_counts(documents).reshape(-1, steps).sum(1)
    rates = tokens / np.array([seconds, turns.seconds])
    return rates[:, 1:], compare(ours.losses(), turns.losses), turns.losses


def compare(ours: list[float], theirs: list[float]) -> np.ndarray:
    difference = np.abs(np.subtract(ours, theirs))
    if not difference.max() <= LARGEST_DIFFERENCE:  # also for NaN
        raise SystemExit(f"the losses differ, so nothing is timed: skytrain {ours}, TRL {theirs}")
    return difference


def rows_of(precision: str, threads: int, setting: str, metric: str, values: Sequence[float], unit: str) -> list[dict]:
    common = {"precision": precision, "threads": threads, "setting": setting, "metric": metric}
    return [common | {"round": i, "value": f"{value:.6g}", "unit": unit} for i, value in enumerate(values, 1)]


def measure(work: Path, precision: str, rounds: int, threads: int, chosen: str | None) -> list[dict[str, object]]:
    ours = Ours(settings(work, precision, (rounds + 1) * STEPS_A_ROUND[precision], threads))
    print(f"\n{precision}, {threads} threads", flush=True)
    names = [chosen] if chosen else list(peer_trl.SETTINGS)
    tried = survey(work / "model", ours.documents()[: SURVEY_STEPS[precision]], precision, names)
    same = {name: rates for name, rates in tried.items() if peer_trl.SETTINGS[name].same_steps}
    best = max(same, key=lambda name: float(np.median(same[name])))
    rates, differences, losses = in_turn(ours, work / "model", precision, best, rounds)
    ours.close()
    ratio = rates[0] / rates[1]
    found = [(peer_trl.NAME, rates[1], "tokens/s"), ("skytrain", rates[0], "tokens/s"), ("ratio", ratio, "")]
    for name, values, unit in found:
        low, middle, high = np.quantile(values, [0.2, 0.5, 0.8])
        print(f"  {name:12} {middle:10,.2f} {unit:9} (p20 {low:,.2f}, p80 {high:,.2f}, {len(values)} rounds)")
    print(f"  loss {losses[0]:.4f} to {losses[-1]:.4f}, largest difference {differences.max():.1e}", flush=True)
    result = []
    for name, values in tried.items():
        result += rows_of(precision, threads, f"{peer_trl.NAME}, {name}", "survey", values, "tokens/s")
    result += rows_of(precision, threads, f"{peer_trl.NAME}, {best}", "in turn", rates[1], "tokens/s")
    result += rows_of(precision, threads, "skytrain", "in turn", rates[0], "tokens/s")
    result += rows_of(precision, threads, f"skytrain / {peer_trl.NAME}, {best}", "ratio", rates[0] / rates[1], "")
    result += rows_of(precision, threads, "skytrain - TRL", "largest loss difference", [differences.max()], "nats")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", choices=list(STEPS_A_ROUND), help="default: both")
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds of each side (7)")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the processor (all cores)"
    )
    parser.add_argument("--setting", choices=list(peer_trl.SETTINGS), help="of TRL; default: the fastest one found")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    peer_trl.datasets.disable_progress_bars()
    # TRL's own settings class names a field that transformers wants renamed.
    warnings.filterwarnings("ignore", category=FutureWarning)
    with tempfile.TemporaryDirectory(prefix="peers-") as name:
        work = Path(name)
        write_model(work / "model", **SHAPE)
        count = (args.rounds + 1) * max(STEPS_A_ROUND.values()) * DOCUMENTS
        write_documents(work / "data", work / "model", count=count, mean=281, longest=LONGEST, vocab=VOCAB)
        for precision in [args.precision] if args.precision else STEPS_A_ROUND:
            print(record.append("peers", measure(work, precision, args.rounds, args.threads, args.setting)))


if __name__ == "__main__":
    main()
