"""A hub in small: every model and data set that the pages name, in its published form, with a few rows; and a book of
what a teacher answers to the problems of them.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from benchmarks import aime, block, gpqa, livecodebench, livecodebench_program, math500
from chat_models import write_qwen2_5
from published import APPS, MATH, NUMINA, STILL2, TACO
from tiny_models import write_tiny_model

from skytrain.prep.sections import tagged

MODELS = ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-32B-Instruct", "Qwen/QwQ-32B-Preview")
NAMES = ("Anna", "Ben", "Clara", "David", "Elena", "Farid", "Greta", "Hugo")
TEXT = "{} has {} apples and buys {} more at the market. How many apples are there now?"


def write(hub: Path) -> dict[str, str]:
    """Repositories below `hub`, as OWNER/NAME; what a teacher says to a prompt that holds a text."""
    for name in MODELS:
        write_model(hub / name)
    sums = [(name, 10 + i, 20 + 3 * i) for i, name in enumerate(NAMES)]
    numina = [
        {**NUMINA, "source": source, "problem": f"In the {source} of old, {TEXT.format(*one)}", "solution": _boxed(one)}
        for source in ("amc_aime", "math", "olympiads")
        for one in sums[:3]
    ]
    programs = [
        {**APPS, "problem_id": i, "question": f"Kiosk {one[0]}: print the sum of the two numbers that you read."}
        for i, one in enumerate(sums[:2])
    ]
    taco = [{**TACO, "question": f"Workshop {one[0]}: double the number that is given."} for one in sums]
    levels = [{**MATH, "problem": row["problem"]} for row in numina if row["source"] == "math"]
    parquet(hub / "AI-MO/NuminaMath-CoT/data/train-00000-of-00001.parquet", numina)
    parquet(hub / "EleutherAI/hendrycks_math/algebra/train-00000-of-00001.parquet", levels)
    parquet(hub / "RUC-AIBOX/long_form_thought_data_5k/data/train-00000-of-00001.parquet", [STILL2])
    parquet(hub / "HuggingFaceH4/aime_2024/data/train-00000-of-00001.parquet", [aime(i) for i in range(30)])
    lines(hub / "codeparrot/apps/test.jsonl", programs)
    arrow(hub / "BAAI/TACO/train/data-00000-of-00001.arrow", taco[:2])
    arrow(hub / "BAAI/TACO/test/data-00000-of-00001.arrow", taco[2:4])
    lines(hub / "HuggingFaceH4/MATH-500/test.jsonl", [math500(i) for i in range(10)])
    table(hub / "Idavidrein/gpqa/gpqa_diamond.csv", [gpqa(i) for i in range(6)])
    live = [livecodebench(i) for i in range(511)]
    for name, rows in (("test.jsonl", live[:400]), ("test2.jsonl", live[400:])):
        lines(hub / "livecodebench/code_generation_lite" / name, rows)
    # More than the ranks of four nodes, which are planned for.
    asked = [(name, a + 100 * k, b) for k in range(5) for name, a, b in sums]
    published = hub / "NovaSky-AI/Sky-T1_data_17k/Sky-T1_data_17k.json"
    published.parent.mkdir(parents=True)
    published.write_text(json.dumps([_conversation(one, _trace(i, one)) for i, one in enumerate(asked)]))
    return book(numina, programs, taco)


def write_model(folder: Path) -> None:
    """Qwen2 of two layers, with a tokenizer and a chat template of Qwen2.5's form, and room for its contexts."""
    write_tiny_model(folder, "qwen2", vocab_size=640, max_position_embeddings=40960)
    write_qwen2_5(folder, vocab_size=600)


def supposed(folder: Path) -> None:
    """The reader's own files that the pages name."""
    talks = [
        [{"role": "user", "content": TEXT.format(name, i, 5)}, {"role": "assistant", "content": f"{i + 5}."}]
        for i, name in enumerate(NAMES)
    ]
    lines(folder / "my_chats.jsonl", [{"messages": talk} for talk in talks])
    lines(folder / "problems.jsonl", [{"question": TEXT.format(n, 1, i), "answer": 1 + i} for i, n in enumerate(NAMES)])
    lines(folder / "data/aime24.jsonl", [aime(i) for i in range(30)])
    lines(folder / "bench/aime24.jsonl", [aime(i) for i in range(30)])
    table(folder / "data/gpqa_diamond.csv", [gpqa(i) for i in range(6)])


def book(numina: list[dict], programs: list[dict], taco: list[dict]) -> dict[str, str]:
    """A label; an editor's two sections for traces that no rule divides; traces. The first that fits is said."""
    said: dict[str, str] = {}
    edited: dict[str, str] = {}
    for i, row in enumerate(numina):
        thoughts = f"For number {i} I add the apples that were bought to those that were there, and count them again."
        box = row["solution"].partition("So ")[2]
        if i % 2:
            said[row["problem"]] = f"{thoughts}\n\n**Final Answer**\n\n{box}"
        else:
            said[row["problem"]] = f"{thoughts} And so {box}"
            edited[said[row["problem"]]] = tagged(said[row["problem"]], f"It is {box}")
    own = [{"question": TEXT.format(name, 1, i), "answer": 1 + i} for i, name in enumerate(NAMES)]
    for row in own:
        said[row["question"]] = f"One and {row['answer'] - 1} more.\n\n**Final Answer**\n\n\\boxed{{{row['answer']}}}"
    for row in programs:
        said[row["question"]] = "Read both and add.\n\n" + block("print(sum(map(int, input().split())))")
    for row in taco:
        said[row["question"]] = "Twice the number.\n\n" + block("def double(n):\n    return 2 * n")
    for i in range(10):
        said[f"Add the {i}th number."] = block(livecodebench_program(i))
    return {"How hard is this problem": "Some steps. [[9]]", **edited, **said}


def _boxed(one: tuple[str, int, int]) -> str:
    return f"Add. So \\boxed{{{one[1] + one[2]}}}"


def _trace(i: int, one: tuple[str, int, int]) -> str:
    return tagged(f"I add {one[1]} and {one[2]} for number {i}.", _boxed(one))


def _conversation(one: tuple[str, int, int], trace: str) -> dict[str, Any]:
    talk = [{"from": "user", "value": TEXT.format(*one)}, {"from": "assistant", "value": trace}]
    return {"system": "Think first, then answer.", "conversations": talk}


def lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def table(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def parquet(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)


def arrow(path: Path, rows: list[dict]) -> None:
    """A stream, as the library `datasets` writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, found.schema) as stream:
        stream.write_table(found)
