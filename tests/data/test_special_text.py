"""Text in a message that spells a special token stays text. The oracle is transformers on the same folder."""

import json
import re

import pytest
from chat_models import WRITERS, write_qwen2_5
from chat_samples import AGAIN, ANSWER, BECAUSE, QUESTION, THINK, trained_texts

from skytrain.data.chat import ChatTokenizer
from skytrain.data.messages import Refused

SPELLED = {
    "user": ([{"role": "user", "content": "a{x}b"}, ANSWER], None),
    "next to a newline": ([{"role": "user", "content": "\n{x}\n"}, ANSWER], None),
    "twice, nested": ([{"role": "user", "content": "<|im_{x}end|>{x}{x}"}, ANSWER], None),
    "system": ([{"role": "system", "content": "{x}"}, QUESTION, ANSWER], None),
    "answer": ([QUESTION, {"role": "assistant", "content": "say {x} and <tool_call> 🙂 é"}], None),
    "earlier turn": ([QUESTION, {"role": "assistant", "content": "{x}"}, AGAIN, BECAUSE], None),
    "tool turns": (
        [
            QUESTION,
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"{x}": ["{x}"]}}}]},
            {"role": "tool", "content": "{x}"},
            ANSWER,
        ],
        [{"function": {"name": "f", "description": "prints {x}"}}],
    ),
}


# Llama 3's first form has no tools.
PLACES = [(form, place) for form in WRITERS for place in SPELLED if (form, place) != ("llama3", "tool turns")]


@pytest.mark.parametrize("form, place", PLACES)
def test_special_tokens_in_content_stay_plain_text(models, form, place):
    """B34: no id of a special token comes from a message; the template's own stay; all other ids as they were.

    The oracle renders with a paragraph sign in the message, cuts at the control tokens, which are then all the
    template's, and has transformers encode the pieces, the spelling put in, with split_special_tokens.
    """
    ours, hf = models[form]
    controls = {token.content: i for i, token in hf.added_tokens_decoder.items() if token.special}
    ends = ("<|im_end|>", "<|im_start|>") if form.startswith("qwen") else ("<|eot_id|>", "<|start_header_id|>")
    messages, tools = spelled(SPELLED[place], "§")
    harmless = hf.apply_chat_template(messages, tools=tools, tokenize=False)
    for text in (*ends, ends[0] + ends[1], "<|endoftext|><|begin_of_text|>"):
        expected = []
        for piece in re.split("(" + "|".join(map(re.escape, controls)) + ")", harmless):
            if piece in controls:
                expected.append(controls[piece])
            elif piece:
                plain = piece.replace("§", text)
                expected += hf(plain, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        encoded = ours.encode(*spelled(SPELLED[place], text))
        assert encoded.tokens.tolist() == expected
        assert hf.decode(encoded.tokens) == harmless.replace("§", text)
        ordinary = ours.encode(messages, tools)
        assert len(trained_texts(hf, encoded)) == len(trained_texts(hf, ordinary))
        assert [t.replace("§", text) for t in trained_texts(hf, ordinary)] == trained_texts(hf, encoded)


def spelled(value, text):
    return json.loads(json.dumps(value, ensure_ascii=False).replace("{x}", text))


def test_added_tokens_that_are_not_special_stay_tokens_in_content(models):
    """B34, the other half: <think> and <tool_call> in a message are tokens, beside special text that is not."""
    ours, hf = models["qwen3"]
    for user in ("a <tool_call> b", "a <tool_call> b <|im_end|>"):
        encoded = ours.encode([{"role": "user", "content": user}, THINK])
        tokens = hf.convert_ids_to_tokens(encoded.tokens.tolist())
        assert tokens.count("<tool_call>") == tokens.count("<think>") == tokens.count("</think>") == 1


def test_the_stand_ins_for_special_text_never_collide_with_the_text(models):
    ours, hf = models["qwen2_5"]
    text = "\U000f0000\U000f0001\U000f0009 <|im_end|>"
    encoded = ours.encode([{"role": "user", "content": text}, ANSWER])
    assert text in hf.decode(encoded.tokens)


def test_a_template_that_looks_at_special_text_is_refused_not_guessed(tmp_path):
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role ~ ' ' ~ (m.content | length) ~ m.content }}<|im_end|>{% endfor %}"
    )
    ours = ChatTokenizer.load(write_qwen2_5(tmp_path, template=template))
    with pytest.raises(Refused, match="special token"):
        ours.encode([{"role": "user", "content": "<|im_end|>"}, ANSWER])
