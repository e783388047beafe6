"""One row of chat data, in either of its forms, as the messages that a chat template takes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "observation": "tool", **{role: role for role in ROLES}}
REASONING = ("reasoning_content", "reasoning", "thinking")


class Refused(Exception):
    """A row that cannot become a document.

    reason: one of the ledger's; detail: for a person; tokens: of the rendered row, 0 where it was not rendered.
    """

    def __init__(self, reason: str, detail: str, tokens: int = 0):
        super().__init__(reason, detail, tokens)
        self.reason, self.detail, self.tokens = reason, detail, tokens


@dataclass(frozen=True)
class Conversation:
    messages: list[dict[str, Any]]
    """As the template takes them: a role, text content (or none beside tool calls), the message's other keys."""
    trained: list[bool]
    """For each message: an assistant turn that is not marked `"train": false`, or `"weight": 0`."""
    tools: list[dict[str, Any]] | None

    @property
    def system(self) -> str | None:
        """The text of a system turn at the start."""
        first = self.messages[0]
        return first["content"] if first["role"] == "system" else None


def conversation(messages: Any, tools: Any = None) -> Conversation:
    """Checks and completes `{"role", "content", ...}` messages. Raises `Refused`: malformed, empty, bad_role."""
    if not isinstance(messages, list):
        raise Refused("malformed", "the messages are not a list")
    if not messages:
        raise Refused("empty", "no messages")
    cleaned, trained = [], []
    for number, message in enumerate(messages, 1):
        message, train = _message(message, f"message {number}")
        cleaned.append(message)
        trained.append(train)
    return Conversation(cleaned, trained, _tools(tools))


def from_row(row: Any) -> Conversation:
    """A row of `{"messages"}` or `{"conversations"}`, with `system` and `tools` beside them. Raises `Refused`."""
    if not isinstance(row, dict):
        raise Refused("malformed", "the row is not an object")
    form = [key for key in ("messages", "conversations") if row.get(key) is not None]
    if len(form) != 1:
        there = ", ".join(f"{key}"[:40] for key in list(row)[:8]) or "none"
        raise Refused("malformed", f"the row needs one of the keys messages and conversations (its keys: {there})")
    messages = row[form[0]]
    if form == ["conversations"] and isinstance(messages, list):
        messages = [_from_sharegpt(turn, number) for number, turn in enumerate(messages, 1)]
    system = row.get("system")
    if system is not None and isinstance(messages, list) and messages:
        if not isinstance(system, str):
            raise Refused("malformed", "system is not text")
        if isinstance(messages[0], dict) and messages[0].get("role") == "system":
            raise Refused("malformed", "two system texts: the key system and a system turn")
        messages = [{"role": "system", "content": system}, *messages]
    return conversation(messages, row.get("tools"))


def _from_sharegpt(turn: Any, number: int) -> Any:
    if not isinstance(turn, dict):
        raise Refused("malformed", f"message {number} is not an object")
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    speaker = turn.get("from")
    role = SHAREGPT_ROLES.get(speaker, speaker) if isinstance(speaker, str) else speaker
    return {"role": role, "content": turn.get("value"), **rest}


def _message(message: Any, where: str) -> tuple[dict[str, Any], bool]:
    if not isinstance(message, dict):
        raise Refused("malformed", f"{where} is not an object")
    role = message.get("role")
    if role not in ROLES:
        found = "no role" if role is None else f"the role {str(role)[:40]!r}"
        raise Refused("bad_role", f"{where} has {found}; roles are {', '.join(ROLES[:-1])} and {ROLES[-1]}")
    train = _train(message, where)
    if train and role != "assistant":
        raise Refused("malformed", f"{where}: train (or weight) is set, and only assistant turns can be trained")
    # A Parquet column holds null where a message lacks the key, and templates ask whether a key is there.
    content = _content(message.get("content"), where)
    cleaned = {key: value for key, value in message.items() if value is not None and key not in ("train", "weight")}
    calls = cleaned.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise Refused("malformed", f"{where}: tool_calls is not a list of objects")
    # A system turn may be empty (it then replaces the template's default), and a tool may return nothing.
    says_more = role in ("system", "tool") or calls or any(cleaned.get(key) for key in REASONING)
    if content is None and not (role == "assistant" and calls):
        raise Refused("empty", f"{where} ({role}) has no content")
    if content is not None:
        if not content.strip() and not says_more:
            raise Refused("empty", f"{where} ({role}) is empty")
        cleaned["content"] = content
    return cleaned, role == "assistant" and train is not False


def _train(message: dict[str, Any], where: str) -> bool | None:
    """The message's own `train`, or OpenAI's `weight` of 0 or 1 as the same; None where it has neither."""
    train, weight = message.get("train"), message.get("weight")
    if train is not None and not isinstance(train, bool):
        raise Refused("malformed", f"{where}: train is {str(train)[:40]!r}, not true or false")
    if weight is None:
        return train
    if not isinstance(weight, int | float) or weight not in (0, 1):
        raise Refused("malformed", f"{where}: weight is {str(weight)[:40]!r}, not 0 or 1")
    if train is not None and train != bool(weight):
        raise Refused("malformed", f"{where}: train and weight contradict each other")
    return bool(weight)


def _content(content: Any, where: str) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Refused("malformed", f"{where}: content is neither text nor a list of text parts")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else part
        if not isinstance(text, str):
            raise Refused("malformed", f"{where}: content has a part that is not text")
        texts.append(text)
    return "".join(texts)


def _tools(tools: Any) -> list[dict[str, Any]] | None:
    if isinstance(tools, str):  # as ShareGPT rows carry them
        try:
            tools = json.loads(tools) if tools.strip() else None
        except (ValueError, RecursionError):
            raise Refused("malformed", "tools is not JSON") from None
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise Refused("malformed", "tools is not a list of objects")
    return tools
