"""What a server's answer says: its thoughts, its answer, and how it ended."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["finished", "truncated", "empty", "filtered", "unfinished"]
OPENED, CLOSED = "<think>", "</think>"
ENDS: dict[Any, Status] = {
    "stop": "finished",
    "eos": "finished",
    "length": "truncated",
    "content_filter": "filtered",
}


class NotAnAnswer(Exception):
    """A body of status 200 that holds no completion; the message says why."""


@dataclass(frozen=True, slots=True)
class Completion:
    """reasoning: None where the model gave none, or none apart. answer: "" where there is none.

    status: "finished"; "truncated" at the limit of tokens; "empty": it ended without an answer; "filtered";
    "unfinished": it ended for another reason, which `finish_reason` tells.
    """

    key: str
    status: Status
    reasoning: str | None
    answer: str
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    server: str
    seconds: float
    engine: str | None
    """The server's system_fingerprint, where it tells one."""

    def record(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def completion(key: str, body: bytes, server: str, seconds: float) -> Completion:
    """Reads the body of an answer. Raises `NotAnAnswer`."""
    try:
        found = json.loads(body)
        choice = found["choices"][0]
        message = choice["message"]
        if not isinstance(message, dict):
            raise TypeError
    except (ValueError, RecursionError):
        raise NotAnAnswer(f"a body that is no JSON ({body[:60]!r})") from None
    except (KeyError, IndexError, TypeError):
        raise NotAnAnswer(f"a body without a completion ({body[:200]!r})") from None
    finish = choice.get("finish_reason")
    if finish in ("abort", "error", "cancelled"):
        raise NotAnAnswer(f"the server gave the request up (finish_reason {finish})")
    thoughts = [message.get(name) for name in ("reasoning", "reasoning_content")]
    content = message.get("content")
    if any(not isinstance(text, str | None) for text in (*thoughts, content)):
        raise NotAnAnswer("a completion whose content is no text")
    thoughts, content = [_whole(text) for text in thoughts], _whole(content)
    reasoning, answer = parts(content or "", next((text for text in thoughts if text), None))
    status = ENDS.get(finish, "unfinished")
    if status == "finished" and not answer.strip():
        status = "empty"
    usage = found.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    numbers = [count if isinstance(count, int) and count >= 0 else 0 for count in counts]
    engine = found.get("system_fingerprint")
    told = (str(finish) if finish is not None else None, *numbers, server, round(seconds, 3))
    return Completion(key, status, reasoning, answer, *told, engine if isinstance(engine, str) else None)


def parts(content: str, reasoning: str | None) -> tuple[str | None, str]:
    """(thoughts, answer). The thoughts stand apart, or before the last `</think>`, whose opening tag may have been the
    prompt's. Thoughts that never close are thoughts: no part of them is an answer."""
    before, closed, behind = content.rpartition(CLOSED)
    if closed:
        inner = before.strip().removeprefix(OPENED).strip()
        # Some servers leave the tag behind when they take the thoughts apart.
        return (reasoning or inner or None), behind.strip()
    if content.lstrip().startswith(OPENED):
        return reasoning or content.lstrip().removeprefix(OPENED).strip() or None, ""
    return reasoning, content.strip()


def _whole(text: str | None) -> str | None:
    """Half a surrogate pair, which a server that cuts its text may send and no file can hold, becomes U+FFFD."""
    return text and text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
