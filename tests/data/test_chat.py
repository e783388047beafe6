"""Chats to ids and masks: the model's own template, exactly. The oracle is transformers on the same folder."""

import json

import numpy as np
import pytest
from chat_models import TEMPLATES, WRITERS, write_llama3, write_qwen2_5
from chat_samples import (
    AGAIN,
    ANSWER,
    BECAUSE,
    CALL,
    CALLING,
    EMPTY_THOUGHT,
    LLAMA_CALL,
    QUESTION,
    QWEN_CALL,
    RESULT,
    SYSTEM,
    THINK,
    TOOLS,
    oracle,
    trained_texts,
)
from transformers import AutoTokenizer

from skytrain.data.chat import ChatTokenizer
from skytrain.data.messages import Refused, from_row

# form -> the conversation -> the texts of its trained spans, without the end-of-turn token
CHATS = {
    "default system": ([QUESTION, ANSWER], None, "all", ["{think}" + ANSWER["content"]]),
    "given system": ([SYSTEM, QUESTION, ANSWER], None, "all", ["{think}" + ANSWER["content"]]),
    "several turns": (
        [SYSTEM, QUESTION, ANSWER, AGAIN, BECAUSE],
        None,
        "all",
        [ANSWER["content"], "{think}" + BECAUSE["content"]],
    ),
    "three turns": (
        [QUESTION, ANSWER, AGAIN, BECAUSE, QUESTION, ANSWER],
        None,
        "all",
        [ANSWER["content"], BECAUSE["content"], "{think}" + ANSWER["content"]],
    ),
    "thinking text": ([QUESTION, THINK], None, "all", [THINK["content"]]),
    "one turn as context": (
        [QUESTION, {**ANSWER, "train": False}, AGAIN, THINK],
        None,
        "all",
        [THINK["content"]],
    ),
    "ends with a question": ([QUESTION, ANSWER, AGAIN], None, "all", [ANSWER["content"]]),
    "tool turns": (
        [SYSTEM, QUESTION, CALLING, RESULT, ANSWER],
        TOOLS,
        "qwen2_5 qwen3 llama3_1",
        ["{call}", "{think}" + ANSWER["content"]],
    ),
    "two results": (
        [QUESTION, {**CALLING, "tool_calls": [CALL, CALL]}, RESULT, RESULT, ANSWER],
        TOOLS,
        "qwen2_5 qwen3",
        ["{call}\n{call}", "{think}" + ANSWER["content"]],
    ),
    "tools, no call": ([QUESTION, ANSWER], TOOLS, "qwen2_5 qwen3 llama3_1", ["{think}" + ANSWER["content"]]),
    "a question after tool turns": (
        [QUESTION, {**CALLING, "content": "Let me add."}, RESULT, ANSWER, AGAIN, THINK],
        TOOLS,
        "qwen2_5 qwen3",
        ["Let me add.\n{call}", ANSWER["content"], THINK["content"]],
    ),
}
PAIRS = [
    (form, name) for name, chat in CHATS.items() for form in WRITERS if chat[2] == "all" or form in chat[2].split()
]


def expected_spans(form, texts):
    end = "<|im_end|>" if form.startswith("qwen") else "<|eot_id|>"
    call = QWEN_CALL if form.startswith("qwen") else LLAMA_CALL
    think = EMPTY_THOUGHT if form == "qwen3" else ""
    return [text.replace("{call}", call).replace("{think}", think) + end for text in texts]


@pytest.mark.parametrize("form, name", PAIRS, ids=[f"{form}-{name}" for form, name in PAIRS])
def test_ids_and_masks_of_the_chat_forms(models, form, name):
    ours, hf = models[form]
    messages, tools, _, texts = CHATS[name]
    encoded = ours.encode(messages, tools)
    assert encoded.tokens.dtype == np.uint32 and encoded.trained.dtype == np.uint8
    assert encoded.tokens.tolist() == oracle(hf, messages, tools)
    assert trained_texts(hf, encoded) == expected_spans(form, texts)


def test_the_templates_render_the_published_text(models):
    """What Qwen2.5, Qwen3, Llama 3 and Llama 3.1 print for one conversation, written out."""
    messages = [SYSTEM, QUESTION, ANSWER]
    question, answer = QUESTION["content"], ANSWER["content"]
    qwen = f"<|im_start|>system\n{SYSTEM['content']}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n"
    assert models["qwen2_5"][0].render(messages) == f"{qwen}<|im_start|>assistant\n{answer}<|im_end|>\n"
    assert models["qwen3"][0].render(messages) == (
        f"{qwen}<|im_start|>assistant\n<think>\n\n</think>\n\n{answer}<|im_end|>\n"
    )

    def turn(role, text):
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>"

    turns = turn("user", question.strip()) + turn("assistant", answer)
    assert models["llama3"][0].render(messages) == "<|begin_of_text|>" + turn("system", SYSTEM["content"]) + turns
    dated = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n" + SYSTEM["content"]
    assert models["llama3_1"][0].render(messages) == "<|begin_of_text|>" + turn("system", dated) + turns


def test_qwen2_5_s_tools_block(models):
    text = models["qwen2_5"][0].render([QUESTION, CALLING, RESULT, RESULT], True, TOOLS)
    assert text == (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.\n\n# Tools\n\n"
        "You may call one or more functions to assist with the user query.\n\nYou are provided with function "
        f"signatures within <tools></tools> XML tags:\n<tools>\n{json.dumps(TOOLS[0])}\n</tools>\n\nFor each function "
        "call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n"
        '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
        f"<|im_start|>user\n{QUESTION['content']}<|im_end|>\n<|im_start|>assistant\n{QWEN_CALL}<|im_end|>\n"
        '<|im_start|>user\n<tool_response>\n{"sum": 357}\n</tool_response>\n<tool_response>\n{"sum": 357}\n'
        "</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def write_letters(folder, **options):
    """A tokenizer of single bytes, and a chat form without control tokens but the end of turn."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}U:{{ m.content }} {% else %}A:{{ m.content }}{{ eos_token }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
    )
    return write_qwen2_5(folder, template=template, vocab_size=256, eos_token="<|endoftext|>", **options)


def test_mask_is_not_shifted_first_answer_token_and_eos_are_targets(tmp_path):
    """B19: "U:x A:yz<eos>" has the targets y, z and <eos>, no others."""
    folder = write_letters(tmp_path)
    encoded = ChatTokenizer.load(folder).encode(
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "yz"}]
    )
    hf = AutoTokenizer.from_pretrained(folder)
    tokens = hf.convert_ids_to_tokens(encoded.tokens.tolist())
    assert tokens == ["U", ":", "x", "Ġ", "A", ":", "y", "z", "<|endoftext|>"]
    assert encoded.trained.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1]


def test_default_system_prompt_as_in_transformers(models):
    """B26: slipped in where none is given, replaced by a given one, by an empty one too, and only once."""
    ours, hf = models["qwen2_5"]
    default = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    turns = [QUESTION, ANSWER, AGAIN, BECAUSE, QUESTION, ANSWER]
    empty = [{"role": "system", "content": ""}, *turns]
    for messages, times in ((turns, 1), ([SYSTEM, *turns], 0), (empty, 0)):
        encoded = ours.encode(messages)
        assert encoded.tokens.tolist() == oracle(hf, messages)
        assert hf.decode(encoded.tokens).count(default) == times
        assert len(trained_texts(hf, encoded)) == 3
    assert hf.decode(ours.encode(empty).tokens).startswith("<|im_start|>system\n<|im_end|>\n")
    talk = from_row({"system": "", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]})
    assert (
        talk.system == ""
        and ours.encode_conversation(talk).tokens[1:3].tolist() == ours.encode(empty).tokens[1:3].tolist()
    )


def test_template_without_generation_markers_still_gives_the_answers_alone(models):
    """B27: the stock Qwen2.5 form, three turns: each answer and its <|im_end|> are trained, nothing else is."""
    assert "generation %}" not in TEMPLATES["qwen2_5"].read_text()
    ours, hf = models["qwen2_5"]
    encoded = ours.encode([QUESTION, ANSWER, AGAIN, BECAUSE, QUESTION, ANSWER])
    assert trained_texts(hf, encoded) == [m["content"] + "<|im_end|>" for m in (ANSWER, BECAUSE, ANSWER)]
    ends = np.flatnonzero((encoded.tokens == hf.convert_tokens_to_ids("<|im_end|>")) & (encoded.trained == 1))
    assert len(ends) == 3 and not encoded.trained[ends + 1].any()


def test_a_row_whose_mask_would_be_all_zero_is_refused(models):
    """D57: without generation markers spans are found (as above); a row with nothing to train says so."""
    ours, hf = models["qwen2_5"]
    for messages in ([QUESTION], [QUESTION, {**ANSWER, "train": False}], [SYSTEM, QUESTION]):
        with pytest.raises(Refused) as caught:
            ours.encode(messages)
        assert caught.value.reason == "nothing_to_train" and caught.value.detail
        assert caught.value.tokens == len(oracle(hf, messages))


def test_thinking_text_is_whole_in_the_trained_span_or_the_row_is_refused(models):
    """B30: Qwen3's form strips the thoughts of earlier turns; that row is refused. Qwen2.5's and Llama's keep them."""
    two_turns = [QUESTION, THINK, AGAIN, {**THINK, "content": "<think>\nblue\n</think>\n\nIt scatters."}]
    for form in ("qwen2_5", "llama3", "llama3_1"):
        ours, hf = models[form]
        spans = trained_texts(hf, ours.encode(two_turns))
        assert [m["content"] in span for m, span in zip(two_turns[1::2], spans, strict=True)] == [True, True]
    ours, hf = models["qwen3"]
    with pytest.raises(Refused) as caught:
        ours.encode(two_turns)
    assert caught.value.reason == "nothing_to_train" and "message 2" in caught.value.detail
    assert caught.value.tokens == len(oracle(hf, two_turns))
    # The last turn alone can be trained.
    two_turns[1] = {**THINK, "train": False}
    assert trained_texts(hf, ours.encode(two_turns)) == [two_turns[3]["content"] + "<|im_end|>"]


@pytest.mark.parametrize(
    "form, content",
    [
        ("qwen3", "<think>moved</think>Answer"),  # the template puts newlines around the thoughts
        ("qwen3", "no opening tag</think>\n\nAnswer"),
        ("llama3", "trimmed at its end \n"),
        ("qwen2_5", "\nbegins inside the newline of the prompt"),
    ],
)
def test_an_answer_that_the_form_changes_is_refused(models, form, content):
    with pytest.raises(Refused) as caught:
        models[form][0].encode([QUESTION, {"role": "assistant", "content": content}])
    assert caught.value.reason == "nothing_to_train" and caught.value.tokens > 0


def test_reasoning_content_is_rendered_or_the_row_is_refused(models):
    messages = [QUESTION, {"role": "assistant", "content": "357", "reasoning_content": "\nadd them\n"}]
    ours, hf = models["qwen3"]
    encoded = ours.encode(messages)
    assert encoded.tokens.tolist() == oracle(hf, messages)
    assert trained_texts(hf, encoded) == ["<think>\nadd them\n</think>\n\n357<|im_end|>"]
    with pytest.raises(Refused, match="reasoning_content"):
        models["qwen2_5"][0].encode(messages)


def test_tool_calls_that_the_form_does_not_know_are_refused(models):
    with pytest.raises(Refused, match="tool calls"):
        models["llama3"][0].encode([QUESTION, {**CALLING, "content": "I call."}])


def test_pad_equal_to_eos_leaves_the_end_of_turn_trained(tmp_path):
    """B32: an end-of-turn token that is also the padding token keeps its mark (nothing here pads)."""
    folder = write_qwen2_5(tmp_path, pad_token="<|im_end|>", eos_token="<|im_end|>")
    hf = AutoTokenizer.from_pretrained(folder)
    assert hf.pad_token_id == hf.eos_token_id
    encoded = ChatTokenizer.load(folder).encode([QUESTION, ANSWER])
    assert encoded.tokens[encoded.trained == 1][-1] == hf.eos_token_id


def test_a_token_that_straddles_the_generation_prompt_is_refused_though_offsets_are_trimmed(tmp_path):
    """Llama 3's post-processor trims blanks off the offsets: " the" would seem to begin behind "A: "."""
    template = (
        "{% for m in messages %}{{ 'Q: ' if m.role == 'user' else 'A: ' }}{{ m.content }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}A: {% endif %}"
    )
    folder = write_llama3(tmp_path, template=template)
    ours, hf = ChatTokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    assert "Ġthe" in hf.convert_ids_to_tokens(hf("A: the")["input_ids"])
    with pytest.raises(Refused, match="inside the generation prompt"):
        ours.encode([QUESTION, {"role": "assistant", "content": "the answer"}])
    assert trained_texts(hf, ours.encode([QUESTION, {"role": "assistant", "content": "1"}])) == ["1<|eot_id|>"]


def test_a_prompt_that_the_form_renders_differently_is_refused(tmp_path):
    """What the model would see before its answer is not what stands before the answer in the whole conversation."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role ~ messages | length }}\n{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant{{ messages | length }}\n{% endif %}"
    )
    with pytest.raises(Refused, match="prompt differently"):
        ChatTokenizer.load(write_qwen2_5(tmp_path, template=template)).encode([QUESTION, ANSWER])
