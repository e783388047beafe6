"""A model folder's files as transformers reads them: its template, its environment, its tokenizer."""

import hashlib
import json
from datetime import datetime

import numpy as np
import pytest
from chat_models import TEMPLATES, write_llama3, write_qwen2_5, write_qwen3
from chat_samples import AGAIN, ANSWER, BECAUSE, QUESTION, SYSTEM, TOOLS, oracle
from transformers import AutoTokenizer

from skytrain.data.chat import ChatTokenizer, tokenizer_digest
from skytrain.data.messages import Refused
from skytrain.errors import UserError


def test_template_with_generation_markers_renders_the_same(folders, models, tmp_path):
    marked = (
        TEMPLATES["qwen2_5"]
        .read_text()
        .replace(
            "~ message.content ~ '<|im_end|>\\n' }}",
            "}}{% generation %}{{ message.content ~ '<|im_end|>\\n' }}{% endgeneration %}",
        )
    )
    assert "endgeneration" in marked
    ours = ChatTokenizer.load(write_qwen2_5(tmp_path, template=marked))
    messages = [QUESTION, ANSWER, AGAIN, BECAUSE]
    for got, want in zip(vars(ours.encode(messages)).values(), vars(models["qwen2_5"][0].encode(messages)).values()):
        np.testing.assert_array_equal(got, want)


def test_no_bos_is_added_and_no_padding_or_truncation_of_the_file_is_used(folders, models, tmp_path):
    raw = json.loads((folders["llama3"] / "tokenizer.json").read_text())
    raw["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    raw["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    folder = write_llama3(tmp_path)
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    encoded = ChatTokenizer.load(folder).encode([QUESTION, ANSWER])
    assert encoded.tokens.tolist() == oracle(models["llama3"][1], [QUESTION, ANSWER])


def test_template_file_and_named_templates_take_precedence_as_in_transformers(tmp_path):
    plain = "{% for m in messages %}<|im_start|>{{ m.role ~ m.content }}<|im_end|>{% endfor %}"
    named = [{"name": "default", "template": plain}, {"name": "tool_use", "template": "{{ tools | length }}" + plain}]
    folder = write_qwen2_5(tmp_path / "named", chat_template=None)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": named}))
    ours, hf = ChatTokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    for tools in (None, TOOLS):
        assert ours.render([QUESTION, ANSWER], tools=tools) == hf.apply_chat_template(
            [QUESTION, ANSWER], tools=tools, tokenize=False
        )
    assert ours.render([QUESTION, ANSWER], tools=TOOLS).startswith("1<|im_start|>")
    (folder / "chat_template.jinja").write_text("file " + plain)
    assert ChatTokenizer.load(folder).render([QUESTION, ANSWER]).startswith("file ")


def test_environment_of_the_template_is_as_in_transformers(tmp_path):
    template = (
        "{%- set ns = namespace(n=0) %}\n"
        "{% for m in messages %}\n"
        "   {% if m.role == 'system' %}{% continue %}{% endif %}\n"
        "   {%- set ns.n = ns.n + 1 %}\n"
        "<|im_start|>{{ m.role }} {{ ns.n }} {{ {'b': '<é>', 'a': [1, none]} | tojson(indent=2) }}\n"
        "{{ m.content }}{{ eos_token }}{{ bos_token }}{{ pad_token }}{{ tools is none }}"
        "{{ documents is none }}{{ strftime_now('%Y') }}\n"
        "{%- endfor %}"
    )
    folder = write_qwen2_5(tmp_path, template=template, pad_token={"content": "<|endoftext|>", "__type": "AddedToken"})
    hf = AutoTokenizer.from_pretrained(folder)
    messages = [SYSTEM, QUESTION, ANSWER]
    assert ChatTokenizer.load(folder).render(messages) == hf.apply_chat_template(messages, tokenize=False)
    assert "1999" in ChatTokenizer.load(folder, now=datetime(1999, 1, 1)).render(messages)


@pytest.mark.parametrize("template", ["{{ raise_exception('roles must alternate') }}", "{{ messages[9].content.x }}"])
def test_a_template_that_refuses_a_row(tmp_path, template):
    ours = ChatTokenizer.load(write_qwen2_5(tmp_path, template=template))
    with pytest.raises(Refused) as caught:
        ours.encode([QUESTION, ANSWER])
    assert caught.value.reason == "malformed"


@pytest.mark.parametrize("expression", ["messages.__class__", "messages.clear()", "strftime_now.__self__"])
def test_a_template_cannot_reach_outside_its_sandbox(tmp_path, expression):
    ours = ChatTokenizer.load(write_qwen2_5(tmp_path, template=f"{{{{ {expression}.x.y }}}}"))
    with pytest.raises(Refused, match=r"unsafe|not safely"):
        ours.render([QUESTION, ANSWER])


def test_digest_is_of_the_tokenizer_s_bytes_and_the_template_s_text(folders):
    folder = folders["qwen2_5"]
    template = TEMPLATES["qwen2_5"].read_bytes()
    digests = tokenizer_digest(folder)
    ours = ChatTokenizer.load(folder)
    assert digests == (ours.tokenizer_sha256, ours.chat_template_sha256)
    assert digests == tuple(hashlib.sha256(b).hexdigest() for b in ((folder / "tokenizer.json").read_bytes(), template))


def test_template_in_its_own_file_has_the_digest_of_the_same_text_in_the_config(folders, tmp_path):
    folder = write_qwen3(tmp_path, form="jinja")
    assert tokenizer_digest(folder) == tokenizer_digest(folders["qwen3"])


@pytest.mark.parametrize(
    "name, text",
    [
        ("tokenizer.json", None),
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", None),
        ("tokenizer_config.json", "["),
        ("chat_template.jinja", "{% for %}"),
        ("chat_template.jinja", b"\xff"),
        ("chat_template.jinja", "{% if 1 %}" * 400 + "{% endif %}" * 400),
        ("chat_template.jinja", "{{ 1 | no_such_filter }}"),
        ("tokenizer_config.json", '{"chat_template": ' + "[" * 100_000),
        ("tokenizer_config.json", '{"chat_template": [{"name": ["x"], "template": "y"}]}'),
        ("tokenizer_config.json", '{"chat_template": [{"name": "default", "template": 7}]}'),
    ],
)
def test_a_broken_model_folder_is_one_line_that_names_it(tmp_path, name, text):
    folder = write_qwen2_5(tmp_path)
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        ChatTokenizer.load(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_without_a_chat_template_says_so(tmp_path):
    folder = write_qwen2_5(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for load in (ChatTokenizer.load, tokenizer_digest):
        with pytest.raises(UserError, match="no chat template"):
            load(folder)
