"""What the demo shows of its model: greedy answers from transformers, and the loss curve."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import transformers
from demo_task import Problem, boxed_answer
from small_model import TURN_END

# transformers loads torchao where it is installed, which then warns of extensions that a CPU has no use for.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)

MOST_NEW_TOKENS = 64  # The longest worked answer has 55.
BATCH = 50


@dataclass(frozen=True)
class Response:
    text: str
    stopped: bool
    """The model itself ended its turn."""


@dataclass(frozen=True)
class Score:
    accuracy: float
    stopped: float

    @classmethod
    def of(cls, problems: list[Problem], responses: list[Response]) -> Score:
        right = sum(boxed_answer(r.text) == p.answer for p, r in zip(problems, responses, strict=True))
        return cls(right / len(problems), sum(r.stopped for r in responses) / len(problems))

    def __str__(self) -> str:
        return f"accuracy {self.accuracy:.1%}, turn ended by the model itself {self.stopped:.1%}"


def examine(folder: Path, problems: list[Problem]) -> Score:
    """Prints one response and the score of all."""
    responses = answer(folder, problems)
    score = Score.of(problems, responses)
    print(f"{problems[0].question}\n{responses[0].text[:400].strip() or '(white space)'}")
    print(f"{folder}: {score}, of {len(problems)} held-out problems", flush=True)
    return score


def answer(folder: Path, problems: list[Problem]) -> list[Response]:
    """Greedy responses of the model in `folder`, asked by a user turn alone: its chat template adds the rest."""
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    turn_end = tokenizer.convert_tokens_to_ids(TURN_END)
    responses = []
    for start in range(0, len(problems), BATCH):
        chats = [[{"role": "user", "content": p.question}] for p in problems[start : start + BATCH]]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        ids = model.generate(**inputs, max_new_tokens=MOST_NEW_TOKENS, do_sample=False)
        for row in ids[:, inputs["input_ids"].shape[1] :].tolist():
            end = next((i for i, token in enumerate(row) if token in stop_tokens(model)), len(row))
            responses.append(Response(tokenizer.decode(row[:end]), row[end : end + 1] == [turn_end]))
    return responses


def stop_tokens(model: transformers.PreTrainedModel) -> list[int]:
    stops = model.generation_config.eos_token_id
    return stops if isinstance(stops, list) else [stops]


def draw_loss(metrics: Path, out: Path) -> None:
    """The training and held-out loss over steps, from metrics.jsonl, as a PNG."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    figure, axes = plt.subplots(figsize=(8, 5))
    for key, label, style in (("loss", "training", "-"), ("validation_loss", "held-out", "o--")):
        points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        if points:
            axes.plot(*zip(*points), style, label=label)
    axes.set(xlabel="step", ylabel="loss per trained token (nats)", yscale="log")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(out, dpi=120, bbox_inches="tight")
    plt.close(figure)
