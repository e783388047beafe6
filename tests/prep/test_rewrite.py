"""Two tagged sections: what is accepted as such, what rules can make, and what a model may not change."""

import json

import pytest
from chat_models import write_qwen3
from published import STILL2
from teacher import Teacher

from skytrain.data.chat import ChatTokenizer
from skytrain.errors import UserError
from skytrain.prep.asking import Model, Sampling
from skytrain.prep.client import Asking
from skytrain.prep.grade.fences import blocks, program_of
from skytrain.prep.importing import import_problems
from skytrain.prep.label import difficulty_of, label
from skytrain.prep.prompts import Prompts
from skytrain.prep.rewrite import rewrite
from skytrain.prep.sections import (
    Irregular,
    check_rewritten,
    check_solution,
    check_think,
    kept,
    sections,
    split,
    tagged,
    think,
)
from skytrain.prep.stage import read_finished

THOUGHTS = (
    "First I add twelve and thirty. That is forty-two. Wait, let me check: forty-two less thirty is twelve. Good."
)
TAGGED = tagged(THOUGHTS, "It is \\boxed{42}.")


def model(url, **more):
    return Model("m", Sampling(0.7, 1.0, 100, {}), Asking([url]), Prompts(), **more)


def write(path, *found):
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def sample(answer, reasoning=None, **more):
    row = {"id": "1", "source": "s", "domain": "math", "prompt": "12+30?", "gold": "42", "problem": "1", "sample": 0}
    return {**row, "asked": "Solve: 12+30?", "reasoning": reasoning, "answer": answer, "provenance": {"a": 1}, **more}


def test_tagged_sections_are_read_back():
    assert sections(TAGGED) == (THOUGHTS, "It is \\boxed{42}.")
    assert sections("\n " + TAGGED + "\n") == (THOUGHTS, "It is \\boxed{42}.")


BROKEN = [
    TAGGED.replace("<|end_of_thought|>", ""),
    TAGGED.replace("<|end_of_solution|>", ""),
    TAGGED + "<|end_of_solution|>",
    "Here it is:\n" + TAGGED,
    TAGGED + "\nI hope that helps!",
    TAGGED.replace("<|end_of_thought|>\n\n<|begin_of_solution|>", "<|begin_of_solution|>\n\n<|end_of_thought|>"),
    TAGGED.replace("<|end_of_thought|>", "<|end_of_thought|> and so"),
    TAGGED.replace("begin_of_thought", "begin_of_thoughts"),
    tagged("", "It is \\boxed{42}."),
    tagged(THOUGHTS, ""),
    tagged(THOUGHTS + " <|begin_of_thought|>", "x"),
    "",
]


@pytest.mark.parametrize("text", BROKEN)
def test_sections_that_are_not_all_four_tags_once_in_order_are_refused(text):
    with pytest.raises(Irregular) as error:
        sections(text)
    assert error.value.reason == "tags"


def test_think_sections():
    """D55: rendered once, and never empty."""
    assert think("r", "Ans") == "<think>\nr\n</think>\n\nAns"
    assert check_think(think("r", "Ans")) == ("r", "Ans")
    for thoughts, answer, reason in (
        ("", "Ans", "no_thoughts"),
        (" \n", "Ans", "no_thoughts"),
        ("a</think>b", "Ans", "tags"),
        ("r", "<think>", "tags"),
    ):
        with pytest.raises(Irregular) as error:
            think(thoughts, answer)
        assert error.value.reason == reason
    for text in ("x<think>\nr\n</think>\n\nAns", "r</think>Ans", "<think>r</think>", "<think></think>Ans", "Ans"):
        with pytest.raises(Irregular):
            check_think(text)


FENCED = [
    ("```python\nx = 1\n```", ["x = 1\n"]),
    ("```python3 \nx = 1\n``` ", ["x = 1\n"]),
    ("```Python\nx = 1\n```\n", ["x = 1\n"]),
    ("``` py\nx = 1\n```", ["x = 1\n"]),
    ("```\nx = 1\n```", ["x = 1\n"]),
    ("~~~python\nx = 1\n~~~", ["x = 1\n"]),
    ("````python\ns = '''\n```\n'''\n````", ["s = '''\n```\n'''\n"]),
    ("1. So:\n   ```python\n   if x:\n       y\n   ```", ["if x:\n    y\n"]),
    ("- ```python\n  x = 1\n  ```", ["x = 1\n"]),
    ('```python title="a.py"\nx = 1\n```', ["x = 1\n"]),
    ("```{.python .numberLines}\nx = 1\n```", ["x = 1\n"]),
    ("```python\r\nx = 1\r\n```\r\n", ["x = 1\r\n"]),
    ("Use `x` and ```y``` inline.", []),
    ("```python\na\n```\ntext\n```python\nb\n```", ["a\n", "b\n"]),
    ("```python\nnever closed", ["never closed"]),
]


@pytest.mark.parametrize("text, codes", FENCED)
def test_code_blocks(text, codes):
    found = blocks(text)
    assert [block.code for block in found] == codes
    assert all(block.python for block in found)


def test_the_program_is_the_last_closed_block_of_python():
    assert program_of("```python\na\n```\n```cpp\nb\n```\n```text\n3\n```") == "a\n"
    assert program_of("```python\na\n```\n```python\nb\n```\n```python\nhalf") == "b\n"
    assert program_of("```cpp\nb\n```") is None
    assert program_of("```python\nhalf") is None
    assert program_of("```python\n\n```") is None
    assert program_of("print(1)") is None
    # What a program prints, or reads, may stand in a block without a mark; marks decide, wherever one is.
    assert program_of("```python\na\n```\nIt prints\n```\n3\n```") == "a\n"
    assert program_of("```\n3\n```\n```Py\na\n```\n```\n4\n```") == "a\n"
    assert program_of("```\na\n```\n```\nb\n```") == "b\n"
    assert program_of("```python\nhalf\n\n~~~\na\n~~~") is None
    assert program_of("```\na\n```\n```python\nhalf") == "a\n"


def test_a_solution_has_its_box_or_its_one_block():
    check_solution("so \\boxed{1}", "math")
    check_solution("any", "other", boxed=False)
    check_solution("It adds.\n```python\nprint(1)\n```", "code")
    for text, domain, reason in (
        ("so 1", "math", "no_box"),
        ("so \\boxed{}", "math", "no_box"),
        ("so \\boxed{1} and \\boxed{2", "math", "no_box"),
        ("print(1)", "code", "code_block"),
        ("```python\na\n```\n```python\nb\n```", "code", "code_block"),
        ("```python\na", "code", "code_block"),
        ("```cpp\na\n```", "code", "code_block"),
        ("```python\n```", "code", "code_block"),
    ):
        with pytest.raises(Irregular) as error:
            check_solution(text, domain)
        assert error.value.reason == reason


def test_thoughts_are_kept_nearly_word_for_word():
    trace = " ".join(f"Step {i} takes {i * 7 % 13} of {i * 5 % 11} and leaves a rest." for i in range(60))
    check_rewritten(tagged(trace, "\\boxed{42}"), trace, "math")
    check_rewritten(
        tagged(f"## Thoughts\n\n{trace.replace('Step 5 takes', 'Step five takes')}", "\\boxed{42}"), trace, "math"
    )
    summary = " ".join(f"Step {i} leaves a rest." for i in range(60))
    invented = trace + " " + " ".join(f"Moreover item {i} was never thought about at all." for i in range(40))
    halved = trace[: len(trace) // 2]
    for thoughts in (summary, invented, halved, "I thought about it.", trace[::-1]):
        with pytest.raises(Irregular) as error:
            check_rewritten(tagged(thoughts, "\\boxed{42}"), trace, "math")
        assert error.value.reason == "thoughts_changed"
    # All of the trace in the solution, and hardly a thought.
    with pytest.raises(Irregular, match="less than half"):
        check_rewritten(tagged(trace[:200], trace + "\\boxed{42}"), trace, "math")


def test_the_measure():
    assert kept("a b c d", "a b c d", "") == (1.0, 1.0)
    assert kept("a b c d e", "a b c d", "d e f") == (2 / 3, 1.0)
    assert kept("a b c d", "x y z w", "a b c d") == (1.0, 0.0)
    assert kept("a b c a b c", "a b c", "") == (1 / 4, 1.0)
    assert kept("我们先算一遍", "我们先算一遍", "") == (1.0, 1.0)


REGULAR = [
    (None, "I add. 42?\n\n**Final Answer**\n\n\\[ \\boxed{42} \\]", "math", "I add. 42?"),
    (None, "I add.\n\n### Final Answer:\nIt is \\boxed{42}.", "math", "I add."),
    (None, "I add.\n**Final Answer:** \\boxed{42}", "math", "I add."),
    (
        None,
        "One.\n\n**Final Answer**\n\nno\n\nTwo.\n\n**Final Answer**\n\n\\boxed{42}",
        "math",
        "One.\n\n**Final Answer**\n\nno\n\nTwo.",
    ),
    ("I add.", "It is \\boxed{42}.", "math", "I add."),
    ("I think.", "So:\n```python\nprint(1)\n```", "code", "I think."),
    (None, "I think.\n\nSo:\n\n```python\nprint(1)\n```\n\nThat is it.", "code", "I think."),
    (
        None,
        "Try\n\n```python\nx\n```\n\nno.\n\nThen\n\n```python\nprint(1)\n```",
        "code",
        "Try\n\n```python\nx\n```\n\nno.",
    ),
]


@pytest.mark.parametrize("reasoning, answer, domain, thoughts", REGULAR)
def test_regular_traces_are_split_by_rules(reasoning, answer, domain, thoughts):
    found, solution = split(reasoning, answer, domain)
    # "Then" and "So:" belong to the block that they lead to.
    assert found == thoughts
    assert found + solution == (reasoning or "") + answer if reasoning else solution in answer
    check_solution(solution, domain)


IRREGULAR = [
    (None, "I add and get \\boxed{42}.", "math"),
    (None, "**Final Answer**\n\n\\boxed{42}", "math"),
    (None, "I add.\n\n**Final Answer**\n\n42", "math"),
    ("I add.", "It is 42.", "math"),
    ("I add. <|end_of_thought|>", "It is \\boxed{42}.", "math"),
    (None, "I add <think>.\n\n**Final Answer**\n\n\\boxed{42}", "math"),
    ("I think.", "So:\n```python\na\n```\nor\n```python\nb\n```", "code"),
    (None, "I think.\n\n```python\nprint(1)", "code"),
    (None, "```python\nprint(1)\n```", "code"),
    (None, "I think.\n\n```python\nprint(1)\n```" + "\n\nAnd then more." * 200, "code"),
]


@pytest.mark.parametrize("reasoning, answer, domain", IRREGULAR)
def test_other_traces_are_left_to_a_model(reasoning, answer, domain):
    with pytest.raises(Irregular) as error:
        split(reasoning, answer, domain)
    assert error.value.reason == "irregular"


def test_a_trace_that_has_the_two_sections_is_taken_as_it_is():
    assert split(None, TAGGED, "math") == sections(TAGGED)
    with pytest.raises(Irregular) as error:  # no box, where one is wanted
        split(None, tagged(THOUGHTS, "It is water."), "math")
    assert error.value.reason == "irregular"
    assert split(None, tagged(THOUGHTS, "It is water."), "other", boxed=False) == (THOUGHTS, "It is water.")
    with pytest.raises(Irregular):  # of a reply whose thoughts came apart the tags are not asked for
        split("I think.", TAGGED, "math")


def test_published_traces_of_science_are_replies_without_a_model(tmp_path):
    """STILL-2: also where the gold is the whole solution, which has no box."""
    boiling = {**STILL2, "combined_text": tagged("Is it oil?", "It boils at sea level.")}
    (tmp_path / "still2.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (STILL2, boiling)))
    import_problems([tmp_path / "still2.jsonl"], tmp_path / "problems.jsonl", form="still2")
    rewrite([tmp_path / "problems.jsonl"], tmp_path / "out.jsonl", by="rules")
    found = rows(tmp_path / "out.jsonl")
    assert [sections(row["messages"][-1]["content"])[1] for row in found] == [
        "It is \\boxed{water}.", "It boils at sea level.",
    ]  # fmt: skip
    assert [row["messages"][1]["content"] for row in found] == [STILL2["question"]] * 2
    assert not {"answer", "reasoning"} & found[0].keys()


def test_rewriting_by_rules(tmp_path):
    path = write(tmp_path / "in.jsonl", sample(f"{THOUGHTS}\n\n**Final Answer**\n\n\\boxed{{42}}"), sample("It is 42."))
    rewrite([path], tmp_path / "out.jsonl", by="rules")
    (row,) = rows(tmp_path / "out.jsonl")
    assert [turn["role"] for turn in row["messages"]] == ["system", "user", "assistant"]
    assert "<|begin_of_solution|>" in row["messages"][0]["content"]
    assert row["messages"][1]["content"] == "Solve: 12+30?"
    assert sections(row["messages"][2]["content"]) == (THOUGHTS, "**Final Answer**\n\n\\boxed{42}")
    assert row["form"] == "tags" and row["provenance"] == {"a": 1, "rewrite": {"by": "rules"}}
    assert not {"answer", "reasoning", "asked"} & row.keys()
    assert read_finished(tmp_path / "out.jsonl").account.dropped == {"irregular": 1}


def test_rewriting_by_a_model_is_checked(tmp_path):
    changed = tagged("I knew it at once and thought no further about it than that.", "\\boxed{42}")
    book = {
        "ONE": TAGGED,
        "TWO": "It is 42.",
        "THREE": changed,
        "FOUR": tagged(THOUGHTS, "It is 42."),
        "FIVE": {"content": TAGGED, "finish_reason": "length"},
    }
    found = [sample(THOUGHTS, prompt=name, id=name) for name in book]
    path = write(tmp_path / "in.jsonl", *found)
    with Teacher(book=book) as teacher:
        rewrite([path], tmp_path / "out.jsonl", by="model", model=model(teacher.url))
        assert teacher.counts()["asked"] == 5
    (row,) = rows(tmp_path / "out.jsonl")
    assert row["id"] == "ONE" and row["messages"][2]["content"] == TAGGED
    assert row["provenance"]["rewrite"]["prompt"].startswith("rewrite.prose@")
    dropped = read_finished(tmp_path / "out.jsonl").account.dropped
    assert dropped == {"tags": 1, "thoughts_changed": 1, "no_box": 1, "unfinished": 1}


def test_rules_come_first_and_the_model_takes_the_rest(tmp_path):
    regular = sample(f"{THOUGHTS}\n\n**Final Answer**\n\n\\boxed{{42}}", id="a")
    path = write(tmp_path / "in.jsonl", regular, sample(THOUGHTS, id="b"))
    with Teacher(book={"12": TAGGED}) as teacher:
        rewrite([path], tmp_path / "out.jsonl", by="rules-then-model", model=model(teacher.url))
        assert teacher.counts()["asked"] == 1
    assert [row["provenance"]["rewrite"]["by"] for row in rows(tmp_path / "out.jsonl")] == ["rules", "model"]


def test_an_error_of_the_server_never_becomes_a_rewriting(tmp_path):
    path = write(tmp_path / "in.jsonl", *[sample(THOUGHTS, prompt=f"n{i}", id=f"{i}") for i in range(10)])
    with Teacher(book={"n": TAGGED}, faults={"400": 0.5}) as teacher:
        rewrite([path], tmp_path / "out.jsonl", by="model", model=model(teacher.url))
    found = read_finished(tmp_path / "out.jsonl").account
    assert found.kept + found.dropped["refused"] == 10 and found.kept and found.dropped["refused"]
    assert all(row["messages"][2]["content"] == TAGGED for row in rows(tmp_path / "out.jsonl"))


def test_think_replies_are_trained_on_as_they_were(tmp_path, model_with_think):
    """D55, to the ids: one opening tag, one closing tag, the thoughts between them."""
    path = write(tmp_path / "in.jsonl", sample("Ans \\boxed{42}", "r"), sample("no thoughts"))
    rewrite([path], tmp_path / "out.jsonl", by="think")
    (row,) = rows(tmp_path / "out.jsonl")
    assert row["messages"] == [
        {"role": "user", "content": "Solve: 12+30?"},
        {"role": "assistant", "content": "<think>\nr\n</think>\n\nAns \\boxed{42}"},
    ]
    tokenizer = ChatTokenizer.load(model_with_think)
    encoded = tokenizer.encode(row["messages"])
    trained = tokenizer.decode(encoded.tokens[encoded.trained == 1])
    assert trained.startswith("<think>\nr\n</think>\n\nAns \\boxed{42}")
    assert (trained.count("<think>"), trained.count("</think>")) == (1, 1)
    assert read_finished(tmp_path / "out.jsonl").account.dropped == {"no_thoughts": 1}


@pytest.fixture
def model_with_think(tmp_path):
    return write_qwen3(tmp_path / "qwen3")


def test_settings_of_rewrite_that_do_not_fit(tmp_path):
    path = write(tmp_path / "in.jsonl", sample(THOUGHTS))
    with pytest.raises(UserError, match="--by model: needs --server and --model"):
        rewrite([path], tmp_path / "out.jsonl", by="model")
    with pytest.raises(UserError, match="--by rules: asks no model"):
        rewrite([path], tmp_path / "out.jsonl", by="rules", model=model("http://h/v1"))
    with pytest.raises(UserError, match="--least 2"):
        rewrite([path], tmp_path / "out.jsonl", by="rules", least=2)
    with pytest.raises(UserError, match="'answer' must be text"):
        rewrite([write(tmp_path / "no.jsonl", {**sample("x"), "answer": None})], tmp_path / "out.jsonl", by="rules")


LABELS = [
    ("It is [[4]]", 4),
    ("[[ 7 ]].", 7),
    ("First [[3]], no: [[5]]", 5),
    ("[[4.5]]", 4.5),
    ("[[10]]", 10),
    ("[[11]]", None),
    ("[[0]]", None),
    ("[4]", None),
    ("4", None),
    ("[[n]]", None),
    ("[[-3]]", None),
    ("", None),
]


@pytest.mark.parametrize("answer, difficulty", LABELS)
def test_a_label_is_the_last_number_in_double_brackets(answer, difficulty):
    assert difficulty_of(answer) == difficulty


def test_labelling(tmp_path):
    problem = {"source": "s", "domain": "math", "gold": "1"}
    found = [{**problem, "id": name, "prompt": f"{name}?"} for name in ("EASY", "HARD", "DUNNO", "LONG", "THOUGHT")]
    path = write(tmp_path / "in.jsonl", *found, {**problem, "id": "HAS", "prompt": "HAS?", "difficulty": 3})
    book = {"EASY": "[[2]]", "HARD": "[[9]]", "DUNNO": "no", "LONG": {"content": "[[3]]", "finish_reason": "length"}}
    book["THOUGHT"] = {"content": "I cannot say", "reasoning": "perhaps [[5]]"}
    with Teacher(book=book) as teacher:
        label([path], tmp_path / "out.jsonl", model(teacher.url))
        assert teacher.counts()["asked"] == 5
    assert {row["id"]: row["difficulty"] for row in rows(tmp_path / "out.jsonl")} == {
        "EASY": 2, "HARD": 9, "DUNNO": None, "LONG": None, "THOUGHT": None, "HAS": 3,
    }  # fmt: skip
    found = read_finished(tmp_path / "out.jsonl").account
    assert (found.read, found.kept, found.notes["labelled"], found.notes["unlabelled"], found.notes["had one"]) == (
        6,
        6,
        2,
        3,
        1,
    )
