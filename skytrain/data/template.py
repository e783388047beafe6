"""A model folder's chat template, rendered as Hugging Face's apply_chat_template renders it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from skytrain.errors import UserError
from skytrain.files import read_regular, unique_keys

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class _Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}`, which some templates put around answers: rendered as its inside."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys=False
) -> str:
    # Jinja's own filter escapes <, > and & for HTML, which would spoil tool descriptions.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _environment(now: datetime) -> jinja2.Environment:
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = _to_json
    env.globals["raise_exception"] = _raise
    env.globals["strftime_now"] = now.strftime
    return env


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model folder. Raises `UserError` naming the file."""
    try:
        value = json.loads(read_regular(path).decode("utf-8"), object_pairs_hook=unique_keys)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; give a Hugging Face model folder with its fast tokenizer") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object")
    return value


def read_templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """name -> text, "default" among them: chat_template.jinja where there is one, else tokenizer_config.json's."""
    found = config.get("chat_template")
    if isinstance(found, str):
        found = {"default": found}
    elif isinstance(found, list):
        found = {
            entry["name"]: entry.get("template")
            for entry in found
            if isinstance(entry, dict) and isinstance(entry.get("name"), str)
        }
    else:
        found = {}
    file = folder / "chat_template.jinja"
    if file.exists():
        # Text as it is: newline translation would change the sha256 and, in a template, the tokens.
        found = {"default": _text(file)}
        for extra in sorted((folder / "additional_chat_templates").glob("*.jinja")):
            found[extra.stem] = _text(extra)
    if not all(isinstance(found.get(name, ""), str) for name in ("default", "tool_use")) or "default" not in found:
        raise UserError(
            f"{folder}: no chat template (neither chat_template.jinja nor one in tokenizer_config.json); put one "
            "there, as launch/templates/qwen2_5.jinja"
        )
    return found


def _text(path: Path) -> str:
    try:
        return read_regular(path).decode("utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from None


def templates_sha256(templates: dict[str, str]) -> str:
    """Of the template's text; of the default's and the tool template's, a NUL between, where a folder has both."""
    texts = [templates[name] for name in ("default", "tool_use") if name in templates]
    # A JSON file can spell half a surrogate pair, which UTF-8 cannot hold.
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()


class ChatTemplate:
    """Renders conversations. `now` is what `strftime_now` tells: one moment for a whole data set."""

    def __init__(self, folder: Path, now: datetime):
        config = read_json(folder / "tokenizer_config.json")
        texts = read_templates(folder, config)
        self.sha256 = templates_sha256(texts)
        self._variables = dict(_named_tokens(config))
        self._default = _compile(folder, now, texts["default"])
        self._tool_use = _compile(folder, now, texts["tool_use"]) if "tool_use" in texts else self._default

    def render(self, messages: list[dict], tools: list[dict] | None = None, add_generation_prompt: bool = False) -> str:
        """The conversation as text. Raises whatever the template raises on these messages."""
        render = self._default if tools is None else self._tool_use
        return render(
            messages=messages,
            tools=tools,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self._variables,
        )


def _compile(folder: Path, now: datetime, text: str) -> Callable[..., str]:
    try:
        return _environment(now).from_string(text).render
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{folder}: its chat template is not valid Jinja (line {error.lineno}: {error})") from None
    except Exception as error:  # jinja2 makes Python of it, and Python may find it too deep
        raise UserError(f"{folder}: its chat template cannot be compiled ({type(error).__name__}: {error})") from None


def _named_tokens(config: dict[str, Any]) -> list[tuple[str, str]]:
    """The tokenizer's named tokens, each a string or a dict with "content"; absent ones stay undefined."""
    found = []
    for name in NAMED_TOKENS:
        value = config.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            found.append((name, value))
    return found
