"""Messages of every kind, and what transformers makes of them."""

from __future__ import annotations

import json

import numpy as np

SYSTEM = {"role": "system", "content": "Your role is to think."}
QUESTION = {"role": "user", "content": "What is 12 + 345?\n"}
ANSWER = {"role": "assistant", "content": "First add, then check: 357. Über 你好 🙂"}
AGAIN = {"role": "user", "content": "Why is the sky blue?"}
BECAUSE = {"role": "assistant", "content": "It's what we see.\n\n   def add(a, b):\r\n\treturn a"}
THINK = {"role": "assistant", "content": "<think>\n12 and 345 is 357.\n</think>\n\nThe answer is 357."}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 12, "b": "é <&>"}}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": '{"sum": 357}'}
TOOLS = [
    {"type": "function", "function": {"name": "add", "description": "a < b & c", "parameters": {"type": "object"}}}
]

QWEN_CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 12, "b": "é <&>"}}\n</tool_call>'
LLAMA_CALL = '{"name": "add", "parameters": {"a": 12, "b": "é <&>"}}'
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"


def without_train(messages):
    return [{key: value for key, value in message.items() if key != "train"} for message in messages]


def oracle(hf, messages, tools=None):
    return list(hf.apply_chat_template(without_train(messages), tools=tools, return_dict=False))


def trained_texts(hf, encoded):
    """The decoded text of each run of trained tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], encoded.trained, [0]]).astype(np.int8)))
    return [hf.decode(encoded.tokens[a:b]) for a, b in edges.reshape(-1, 2)]


def chat(question, answer, **keys):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **keys}


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
