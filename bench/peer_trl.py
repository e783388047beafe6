"""TRL's side of bench/peers.py: SFTTrainer, the settings tried, and the proof that one keeps documents apart."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer
from workload import Row

NAME = f"TRL {metadata.version('trl')}"


@dataclass(frozen=True)
class Setting:
    """How TRL lays out the documents of a step: `rows` of them in each of `micro_batches`."""

    rows: int
    micro_batches: int
    sort: bool = False
    """The documents of each step are given by length, so that those of one micro-batch need little padding."""
    same_steps: bool = True
    """Every step has the documents that skytrain's has."""
    options: dict[str, Any] = field(default_factory=dict)


# Eight documents a step in all but the packed one, where a row holds as many as fit in 1,024 tokens.
SETTINGS = {
    "a document a micro-batch": Setting(1, 8),
    "a document a micro-batch, compiled": Setting(1, 8, options={"torch_compile": True}),
    "2 padded documents by length": Setting(2, 4, sort=True),
    "8 padded documents": Setting(8, 1),
    "padding-free, 2 documents": Setting(2, 4, options={"padding_free": True, "max_length": None}),
    "best-fit packing": Setting(1, 2, same_steps=False, options={"packing": True}),
}


class Turns(TrainerCallback):
    """Clocks rounds of `steps` optimizer steps, from one logged line to another, and calls `between` after each."""

    def __init__(self, steps: int, between: Callable[[], None]):
        self.steps, self.between = steps, between
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def on_train_begin(self, *_args, **_kwargs) -> None:
        self.since = time.perf_counter()

    def on_log(self, _args, state, _control, logs=None, **_kwargs) -> None:
        if "loss" not in logs:  # the summary at the end
            return
        self.losses.append(logs["loss"])
        if state.global_step % self.steps == 0:
            self.seconds.append(time.perf_counter() - self.since)
            self.between()
            self.since = time.perf_counter()


def trainer(model: Path, steps: Sequence[Sequence[Row]], setting: Setting, *, bf16: bool, optim: dict) -> SFTTrainer:
    """steps: the documents of each optimizer step. optim: lr, betas, eps, weight_decay and clip of skytrain's."""
    ordered = [
        row for rows in steps for row in (sorted(rows, key=lambda row: len(row["input_ids"])) if setting.sort else rows)
    ]
    options: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(dir=model.parent),
        "per_device_train_batch_size": setting.rows,
        "gradient_accumulation_steps": setting.micro_batches,
        "max_steps": len(steps),
        "train_sampling_strategy": "sequential",
        "max_length": 1024,
        "use_cpu": True,
        "bf16": bf16,
        # Its default is on; memory is no question here, and recomputing would slow it down.
        "gradient_checkpointing": False,
        "optim": "adamw_torch_fused",
        "learning_rate": optim["lr"],
        "adam_beta1": optim["betas"][0],
        "adam_beta2": optim["betas"][1],
        "adam_epsilon": optim["eps"],
        "weight_decay": optim["weight_decay"],
        "max_grad_norm": optim["clip"],
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    weights = AutoModelForCausalLM.from_pretrained(model, dtype="float32", attn_implementation="sdpa")
    made = SFTTrainer(
        model=weights,
        args=SFTConfig(**(options | setting.options)),
        train_dataset=datasets.Dataset.from_list(ordered),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    made.remove_callback(PrinterCallback)
    return made


@torch.no_grad()
def largest_leak(made: SFTTrainer) -> float:
    """Largest difference between the logits of the first micro-batch's documents in it and each document alone,
    as a part of the largest logit.

    The micro-batch goes through the trainer's own collator and into the model as the trainer calls it.
    """
    rows = [made.train_dataset[i] for i in range(made.args.per_device_train_batch_size)]
    keep = {"input_ids", "labels", "seq_lengths"}
    batch = made.data_collator([{k: v for k, v in row.items() if k in keep} for row in rows])
    batch.pop("labels")
    logits = made.model(**batch, use_cache=False).logits
    lengths = [n for row in rows for n in row.get("seq_lengths", [len(row["input_ids"])])]
    documents = torch.tensor([token for row in rows for token in row["input_ids"]]).split(lengths)
    if made.padding_free:
        together = logits[0].split(lengths)
    else:
        together = [row[:length] for row, length in zip(logits, lengths, strict=True)]
    alone = [made.model(input_ids=document[None], use_cache=False).logits[0] for document in documents]
    worst = max((a - b).abs().max().item() for a, b in zip(together, alone, strict=True))
    return worst / max(a.abs().max().item() for a in alone)
