"""The demo's task, its untrained model and its folder; and that what it trains stops by itself."""

import json
import re
from pathlib import Path

import demo
import demo_report
import demo_task
import numpy as np
import pytest
import small_model
import torch
import transformers
from demo_task import Problem

from skytrain import config, hf
from skytrain.data.chat import ChatTokenizer
from skytrain.data.dataset import TokenDataset
from skytrain.errors import UserError
from skytrain.prep.tokenize import tokenize
from skytrain.trainer import train

PROBLEM = Problem((7, 8, 9))


@pytest.fixture(scope="module")
def problems() -> tuple[list[Problem], list[Problem]]:
    return demo_task.make_problems(0)


@pytest.fixture(scope="module")
def texts(problems) -> list[str]:
    return demo_task.texts(problems[0])


@pytest.fixture(scope="module")
def model(texts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "model"
    small_model.write_model_folder(folder, texts, seed=0)
    return folder


def test_every_worked_step_and_every_answer_is_right(problems):
    train_set, held_out = problems
    assert len(train_set) >= 5000 and len(held_out) >= 200
    for problem in [*train_set, *held_out]:
        assert 3 <= len(problem.terms) <= 6
        assert problem.question == "+".join(map(str, problem.terms)) + "=?"
        thought = re.fullmatch(
            r"<\|begin_of_thought\|>\n((?:\d+\+\d=\d+\n)+)<\|end_of_thought\|>\n\n"
            r"<\|begin_of_solution\|>\\boxed\{(\d+)\}<\|end_of_solution\|>",
            problem.worked_answer,
        )
        steps = [tuple(map(int, re.split(r"[+=]", line))) for line in thought[1].split()]
        assert all(left + term == total for left, term, total in steps)
        assert [steps[0][0], *(term for _, term, _ in steps)] == list(problem.terms)
        assert [left for left, _, _ in steps[1:]] == [total for _, _, total in steps[:-1]]
        assert int(thought[2]) == steps[-1][2] == sum(problem.terms) == int(problem.answer)


def test_no_problem_occurs_twice_not_even_in_the_other_set(problems, tmp_path):
    """Read back from the files that the data set is made of."""
    asked = {}
    for name, part in zip(("train", "held_out"), problems, strict=True):
        demo_task.write_chats(part, tmp_path / name)
        rows = [json.loads(line) for line in (tmp_path / name).read_text(encoding="utf-8").splitlines()]
        assert all(row["system"] == demo_task.SYSTEM for row in rows)
        assert all([turn["from"] for turn in row["conversations"]] == ["user", "assistant"] for row in rows)
        asked[name] = [tuple(re.findall(r"\d", row["conversations"][0]["value"])) for row in rows]
        assert len(set(asked[name])) == len(rows) == len(part)
    assert not set(asked["train"]) & set(asked["held_out"])


def test_the_problems_follow_from_the_seed(problems):
    assert demo_task.make_problems(0) == problems
    assert demo_task.make_problems(1) != problems


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (PROBLEM.worked_answer, "24"),
        (r"<|begin_of_solution|>\boxed{1} \boxed{2}<|end_of_solution|>", "2"),
        (r"<|begin_of_thought|>\boxed{24}<|end_of_thought|>", None),
        (r"<|begin_of_solution|>\boxed{24}", None),
        (r"<|begin_of_solution|>24<|end_of_solution|>", None),
        (r"<|begin_of_solution|>\boxed{24<|end_of_solution|>", None),
        ("", None),
    ],
)
def test_only_a_box_in_a_closed_solution_section_is_an_answer(response, answer):
    assert demo_task.boxed_answer(response) == answer


def test_a_response_counts_by_its_box_and_by_its_end():
    wrong = PROBLEM.worked_answer.replace("boxed{24}", "boxed{25}")
    responses = [
        demo_report.Response(PROBLEM.worked_answer, stopped=True),
        demo_report.Response(PROBLEM.worked_answer, stopped=False),
        demo_report.Response(wrong, stopped=True),
        demo_report.Response(wrong, stopped=True),
    ]
    assert demo_report.Score.of([PROBLEM] * 4, responses) == demo_report.Score(accuracy=0.5, stopped=0.75)


def test_tokens(model, problems):
    """Digits stand alone, each tag is one ordinary token, each turn token a control token, and text comes back."""
    tokenizer = ChatTokenizer.load(model)._tokenizer
    for problem in problems[1]:
        assert len(tokenizer.encode(problem.worked_answer).ids) < demo_report.MOST_NEW_TOKENS
        for text in (problem.question, problem.worked_answer):
            encoding = tokenizer.encode(text)
            assert tokenizer.decode(encoding.ids, skip_special_tokens=True) == text
            assert all(len(token) == 1 for token in encoding.tokens if re.search(r"\d", token))
            assert len(re.findall(r"\d", text)) == sum(token.isdigit() for token in encoding.tokens)
    assert tokenizer.get_vocab_size() <= small_model.Size().vocabulary
    added = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
    assert {text for text, special in added.items() if not special} == set(small_model.TAGS)
    assert {text for text, special in added.items() if special} == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}


def test_the_chat_form_and_what_is_trained(model):
    chats = ChatTokenizer.load(model)
    turns = [
        {"role": "system", "content": demo_task.SYSTEM},
        {"role": "user", "content": PROBLEM.question},
        {"role": "assistant", "content": PROBLEM.worked_answer},
    ]
    prompt = "<|im_start|>system\nThink first.<|im_end|>\n<|im_start|>user\n7+8+9=?<|im_end|>\n<|im_start|>assistant\n"
    assert chats.render(turns[:2], add_generation_prompt=True) == prompt
    assert chats.render(turns) == f"{prompt}{PROBLEM.worked_answer}<|im_end|>\n"
    encoded = chats.encode(turns)
    trained = encoded.tokens[encoded.trained == 1].tolist()
    assert chats._tokenizer.decode(trained, skip_special_tokens=False) == f"{PROBLEM.worked_answer}<|im_end|>"


def test_transformers_loads_the_untrained_model(model, problems):
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(model, output_loading_info=True)
    assert isinstance(loaded, transformers.Qwen2ForCausalLM)
    assert not any(report.values()), report
    assert 0.75e6 < loaded.num_parameters() < 0.9e6
    assert hf.read_config(model).vocab_size == small_model.Size().vocabulary
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    ours = ChatTokenizer.load(model)._tokenizer
    for problem in problems[1]:
        assert tokenizer.encode(problem.worked_answer) == ours.encode(problem.worked_answer).ids
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"


def test_the_model_folder_follows_from_the_seed(model, texts, tmp_path):
    small_model.write_model_folder(tmp_path / "same", texts, seed=0)
    small_model.write_model_folder(tmp_path / "other", texts, seed=1)
    for path in model.iterdir():
        assert path.read_bytes() == (tmp_path / "same" / path.name).read_bytes()
        differs = path.read_bytes() != (tmp_path / "other" / path.name).read_bytes()
        assert differs == (path.name == "model.safetensors")


def test_initial_weights_are_spread_as_said():
    weights = small_model.initial_weights(0, small_model.Size())
    for name, tensor in weights.items():
        if tensor.ndim == 1:
            assert (tensor == (1 if "norm" in name else 0)).all()
        else:
            into_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
            expected = 0.06 / np.sqrt(2 * small_model.Size().layers) if into_stream else 0.06
            assert tensor.std() == pytest.approx(expected, rel=0.03)


def test_an_earlier_demo_is_removed_only_when_asked(tmp_path):
    out = tmp_path / "demo"
    beside = tmp_path / "beside.txt"
    beside.write_text("mine")
    demo.start_folder(out, 0, overwrite=False)
    (out / "old.txt").write_text("old")
    with pytest.raises(UserError, match=r"holds an earlier demo.*--overwrite"):
        demo.start_folder(out, 0, overwrite=False)
    assert (out / "old.txt").exists()
    demo.start_folder(out, 0, overwrite=True)
    assert not (out / "old.txt").exists()
    assert beside.read_text() == "mine"


def test_a_folder_that_no_demo_made_is_never_removed(tmp_path):
    theirs = tmp_path / "thesis"
    theirs.mkdir()
    (theirs / "chapter.tex").write_text("text")
    link = tmp_path / "link"
    link.symlink_to(demo.start_folder(tmp_path / "demo", 0, overwrite=False))
    for folder in (theirs, theirs / "chapter.tex", link):
        with pytest.raises(UserError, match=r"not a demo's folder.*--out"):
            demo.start_folder(folder, 0, overwrite=True)
    assert (theirs / "chapter.tex").read_text() == "text"
    assert (tmp_path / "demo" / demo.MARKER).exists()


def test_the_loss_curve_draws_both_losses(tmp_path):
    """A picture without either of them is another picture. A skipped step's loss is null, and leaves a gap."""
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 3, "loss": 1.0}]
    lines += [{"step": 1, "validation_loss": 1.8}, {"step": 3, "validation_loss": 1.5}]
    pictures = set()
    for kept in (lines, lines[:3], lines[3:]):
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
        demo_report.draw_loss(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
        pictures.add((tmp_path / "loss.png").read_bytes())
    assert len(pictures) == 3
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)


def fit(folder: Path, model: Path, chats: list[dict], steps: int, *overrides: str) -> Path:
    """Trains on `chats` alone by the demo's recipe, in this process; the exported folder."""
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    tokenize([rows], model, folder / "data")
    values = [f"run.dir={folder / 'run'}", f"model.path={model}", f"data.path={folder / 'data'}"]
    values += ["data.validation=none", "train.validate_every=none", f"train.epochs={steps}", "log.every=100"]
    values += [f"batch.documents={len(chats)}", "log.tensorboard=false", *overrides]
    train(config.load(demo.RECIPE, values))
    (exported,) = (folder / "run" / "export").iterdir()
    return exported


def test_the_trained_demo_model_stops_by_itself_without_a_system_turn(model, problems, tmp_path):
    """Also: it thinks without being asked, since the exported chat template holds the system turn of the chats.

    Six problems by heart stand for the whole training, which `make demo` does, on problems held out.
    """
    known = problems[0][:6]
    assert demo_report.Score.of(known, demo_report.answer(model, known)) == demo_report.Score(0.0, 0.0)
    exported = fit(tmp_path, model, [p.chat() for p in known], 100)
    responses = demo_report.answer(exported, known)
    assert [r.text for r in responses] == [p.worked_answer for p in known]
    assert all(r.stopped for r in responses)


def test_one_row_learned_by_heart_comes_back_with_its_end(model, tmp_path):
    """B19: "U:x A:yz<eos>": 200 steps on this row alone, then greedy output = "yz<eos>", no more and no less."""
    turn = [{"from": "user", "value": "x"}, {"from": "assistant", "value": "yz"}]
    exported = fit(tmp_path, model, [{"system": "s", "conversations": turn}], 200)
    data = TokenDataset.open(tmp_path / "data")
    tokens, trained = data.document(0)
    first = int(np.flatnonzero(trained)[0])
    loaded = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    prompt = torch.tensor([tokens[:first].tolist()])
    row = loaded.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    assert tokenizer.decode(row[0, first:].tolist()) == "yz<|im_end|>"
