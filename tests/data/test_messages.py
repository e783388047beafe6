"""Rows of chat data, good and bad: what they mean, or the reason they are refused for."""

import json

import pytest
from chat_samples import ANSWER, QUESTION, SYSTEM, TOOLS

from skytrain.data.messages import Refused, from_row


@pytest.mark.parametrize(
    "messages, reason",
    [
        ([{"role": "user", "content": None}, ANSWER], "empty"),
        ([{"role": "user", "content": ""}, ANSWER], "empty"),
        ([{"role": "user", "content": " \n"}, ANSWER], "empty"),
        ([{"role": "user"}, ANSWER], "empty"),
        ([QUESTION, {"role": "assistant", "content": ""}], "empty"),
        ([], "empty"),
        (None, "malformed"),
        ("hello", "malformed"),
        (["hello"], "malformed"),
        ([{"content": "no role"}, ANSWER], "bad_role"),
        ([{"role": "critic", "content": "a"}, ANSWER], "bad_role"),
        ([{"role": ["user"], "content": "a"}, ANSWER], "bad_role"),
        ([{"role": "user", "content": 3}, ANSWER], "malformed"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}, ANSWER], "malformed"),
        ([{"role": "user", "content": [{"type": "text"}]}, ANSWER], "malformed"),
        ([{"role": "user", "content": "half \ud83d"}, ANSWER], "malformed"),
        ([QUESTION, {**ANSWER, "train": "false"}], "malformed"),
        ([{**QUESTION, "train": True}, ANSWER], "malformed"),
        ([{**QUESTION, "weight": 1}, ANSWER], "malformed"),
        ([QUESTION, {**ANSWER, "weight": 0.5}], "malformed"),
        ([QUESTION, {**ANSWER, "weight": "0"}], "malformed"),
        ([QUESTION, {**ANSWER, "weight": 0, "train": True}], "malformed"),
        ([QUESTION, {"role": "assistant", "content": None, "tool_calls": "x"}], "malformed"),
        ([QUESTION, {"role": "assistant", "content": "", "tool_calls": ["x"]}], "malformed"),
    ],
)
def test_odd_content_is_refused_with_its_reason(models, messages, reason):
    """B37: null, empty, list content, missing keys: never a crash."""
    with pytest.raises(Refused) as caught:
        models["qwen2_5"][0].encode(messages)
    assert caught.value.reason == reason and caught.value.detail and caught.value.tokens == 0


def test_text_parts_and_extra_keys_are_taken(models):
    """B37: a list of text parts is its text, and keys the template does not know change nothing."""
    ours, _ = models["qwen2_5"]
    parts = {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "this?"}]}
    plain = {"role": "user", "content": "What is this?", "name": None, "score": 3}
    assert ours.encode([parts, ANSWER]).tokens.tolist() == ours.encode([plain, ANSWER]).tokens.tolist()


def test_openai_s_weight_means_what_train_does(models):
    ours, _ = models["qwen2_5"]

    def targets(**marks):
        return ours.encode([QUESTION, {**ANSWER, **marks}, QUESTION, ANSWER]).trained.tolist()

    assert targets(weight=0) == targets(train=False) == targets(weight=0.0, train=False)
    assert targets(weight=1) == targets() == targets(weight=True) == targets(weight=None)
    assert sum(targets(weight=0)) < sum(targets())


@pytest.mark.parametrize(
    "row, reason",
    [
        ({}, "malformed"),
        ([], "malformed"),
        ({"messages": [QUESTION, ANSWER], "conversations": [{"from": "human", "value": "a"}]}, "malformed"),
        ({"messages": {"role": "user"}}, "malformed"),
        ({"conversations": [{"from": "human"}, {"from": "gpt", "value": "b"}]}, "empty"),
        ({"conversations": [{"value": "a"}]}, "bad_role"),
        ({"conversations": ["a"]}, "malformed"),
        ({"system": "s", "messages": [SYSTEM, QUESTION, ANSWER]}, "malformed"),
        ({"system": 3, "messages": [QUESTION, ANSWER]}, "malformed"),
        ({"messages": [QUESTION, ANSWER], "tools": "{"}, "malformed"),
        ({"messages": [QUESTION, ANSWER], "tools": ["add"]}, "malformed"),
    ],
)
def test_odd_rows_are_refused_with_their_reason(row, reason):
    with pytest.raises(Refused) as caught:
        from_row(row)
    assert caught.value.reason == reason


def test_both_forms_of_a_row_mean_the_same():
    sharegpt = {
        "system": SYSTEM["content"],
        "conversations": [
            {"from": "human", "value": "a"},
            {"from": "gpt", "value": "b", "train": False},
            {"from": "tool", "value": "c"},
            {"from": "assistant", "value": "d"},
        ],
        "tools": json.dumps(TOOLS),
    }
    roles = ("user", "assistant", "tool", "assistant")
    messages = [SYSTEM, *({"role": role, "content": text} for role, text in zip(roles, "abcd", strict=True))]
    messages[2]["train"] = False
    assert from_row(sharegpt) == from_row({"messages": messages, "tools": TOOLS})
    assert from_row(sharegpt).trained == [False, False, False, False, True]
