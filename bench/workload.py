"""A small training task made here: a Qwen2 of random weights, documents of ids, and skytrain's run on them."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from skytrain import flops, optim, parallel, trainer
from skytrain.config import Config
from skytrain.data.chat import tokenizer_digest
from skytrain.data.dataset import DatasetWriter
from skytrain.metrics import Metrics
from skytrain.run import begin, document_lengths, prepare

IGNORED = -100
Row = dict[str, list[int]]
"""input_ids and labels of one document; a label that is not trained is IGNORED."""


def write_model(folder: Path, **shape: int) -> None:
    """Random weights, and a tokenizer that only names the padding: the documents are made of ids."""
    torch.manual_seed(0)
    settings = Qwen2Config(tie_word_embeddings=False, bos_token_id=None, eos_token_id=0, pad_token_id=0, **shape)
    Qwen2ForCausalLM(settings).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<end>": 0}, unk_token="<end>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)


def write_documents(folder: Path, model: Path, *, count: int, mean: int, longest: int, vocab: int) -> None:
    """Lengths are lognormal with sigma 0.65, cut at 16 and `longest`. Something to learn: an id is Zipf's, or in every
    other case the one that always follows the id before it."""
    rng = np.random.default_rng(0)
    lengths = np.clip(np.rint(mean / np.exp(0.65**2 / 2) * rng.lognormal(0, 0.65, count)), 16, longest).astype(int)
    frequency = 1 / np.arange(10, vocab + 9)
    follower = rng.permutation(np.arange(1, vocab))
    tokenizer, template = tokenizer_digest(model)
    with DatasetWriter(folder, tokenizer_sha256=tokenizer, chat_template_sha256=template, max_length=longest) as writer:
        for index, length in enumerate(lengths):
            ids = rng.choice(vocab - 1, length, p=frequency / frequency.sum()) + 1
            for place in 1 + np.flatnonzero(rng.random(length - 1) < 0.5):
                ids[place] = follower[ids[place - 1] - 1]
            # The question is 5% to 20% of a document.
            trained = np.arange(length) >= max(1, round(length * rng.uniform(0.05, 0.2)))
            writer.add(ids.astype(np.uint32), trained.astype(np.uint8), {"id": str(index)})
        writer.finish()


class Ours:
    """A skytrain run, a round at a time: what `trainer.loop` does, but for checkpoints and exports."""

    def __init__(self, settings: Config):
        self.run = prepare(settings, parallel.start(settings), resume=False)
        begin(self.run, resume=False)
        self.metrics = Metrics(self.run.folder, settings.log, self.run.world, done=0, total=self.run.total)

    def documents(self) -> list[list[Row]]:
        """The documents of each step, for the other side."""
        steps = []
        for step in range(self.run.total):
            chosen = np.concatenate([row for ranks in self.run.feed.planner.step(step).rows for row in ranks])
            steps.append([self._row(int(index)) for index in chosen])
        return steps

    def _row(self, index: int) -> Row:
        tokens, trained = self.run.feed.dataset.document(index)
        labels = np.where(trained, tokens.astype(np.int64), IGNORED)
        return {"input_ids": tokens.tolist(), "labels": labels.tolist()}

    def round(self, steps: int) -> float:
        """Trains; returns the seconds it took."""
        run, since = self.run, time.perf_counter()
        # As `trainer.train` sets it; the other side keeps Python's default.
        gc.disable()
        for _ in range(steps):
            step = run.feed[run.done]
            rate = optim.learning_rate(run.done, run.total, run.config.schedule, run.config.optim.lr)
            loss, norm = trainer.train_step(run, step, rate)
            run.done += 1
            operations = flops.model_flops(run.model.config, document_lengths(run, step.plan.rows))
            self.metrics.count(step.plan.tokens, step.plan.targets, operations)
            trainer.log(run, self.metrics, loss, norm, lr=rate, epoch=step.plan.epoch)
        gc.enable()
        return time.perf_counter() - since

    def losses(self) -> list[float]:
        lines = (self.run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["loss"] for line in lines]

    def close(self) -> None:
        self.metrics.close()
        self.run.feed.close()
        parallel.stop()


def token_counts(steps: Sequence[Sequence[Row]]) -> np.ndarray:
    return np.array([sum(len(row["input_ids"]) for row in rows) for rows in steps])
