"""A conversation as token ids and marks of what is trained: the model's own chat template, exactly.

The ids are those of the whole rendered conversation, encoded at once. One exception: text inside a message that
spells an added token marked `special: true` stays plain text (see `ChatTokenizer._encode_marked`).

The trained span of an assistant turn begins where the messages before it, rendered with the generation prompt, end,
and ends with the last control token of the conversation rendered up to that turn: its end-of-turn token.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, processors

from skytrain.data.messages import REASONING, Conversation, Refused, conversation
from skytrain.data.template import ChatTemplate, read_json, read_templates, templates_sha256
from skytrain.errors import UserError
from skytrain.files import read_regular
from skytrain.model_folder import absent


@dataclass(frozen=True)
class Encoded:
    """tokens: uint32 [n]; trained: uint8 [n], 1 where the token is a target."""

    tokens: np.ndarray
    trained: np.ndarray


@dataclass(frozen=True)
class _Tokenised:
    """A rendered conversation. `starts`, `ends`: each token's characters in `text`, int64 [n]."""

    text: str
    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    controls: np.ndarray
    """Indices of the tokens that the template itself put there as control tokens."""


def tokenizer_digest(model_folder: str | Path) -> tuple[str, str]:
    """(sha256 of the bytes of tokenizer.json, sha256 of the chat template's text), as dataset.json holds them."""
    folder = Path(model_folder)
    templates = read_templates(folder, read_json(folder / "tokenizer_config.json"))
    return hashlib.sha256(_tokenizer_bytes(folder)).hexdigest(), templates_sha256(templates)


def _tokenizer_bytes(folder: Path) -> bytes:
    path = folder / "tokenizer.json"
    try:
        return read_regular(path)
    except OSError as error:
        why = f"{path}: cannot be read ({error.strerror})" if path.exists() else absent(path)
        raise UserError(why) from None


def _of_tokenizers(error: BaseException) -> bool:
    """Whether the tokenizers library gave up. It raises bare Exceptions, and its panics are not even those."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


class ChatTokenizer:
    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, tokenizer_sha256: str):
        self.tokenizer_sha256 = tokenizer_sha256
        self.chat_template_sha256 = template.sha256
        self._template = template
        self._tokenizer = tokenizer
        # A tokenizer.json saved in the middle of someone's training may pad or cut.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        # Without the post-processor's own special tokens its ids are the same, but Llama 3's trims blanks off the
        # offsets, and a token that straddles the generation prompt would go unseen.
        tokenizer.post_processor = processors.Sequence([])
        specials = {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._is_special = np.zeros(max(tokenizer.get_vocab().values(), default=-1) + 1, bool)
        self._is_special[list(specials)] = True
        self._special_texts = sorted(specials.values(), key=len, reverse=True)
        self._find_special = re.compile("|".join(map(re.escape, self._special_texts)) or r"(?!)")

    @classmethod
    def load(cls, model_folder: str | Path, now: datetime | None = None) -> ChatTokenizer:
        """From a Hugging Face folder: tokenizer.json, tokenizer_config.json, chat_template.jinja where there is one.

        `now`: the moment that templates which print the date see. Raises `UserError` naming the file.
        """
        folder = Path(model_folder)
        raw = _tokenizer_bytes(folder)
        try:
            tokenizer = Tokenizer.from_buffer(raw)
        except BaseException as error:
            if not _of_tokenizers(error):
                raise
            raise UserError(f"{folder / 'tokenizer.json'}: not a tokenizer ({error}); download it again") from None
        template = ChatTemplate(folder, now or datetime.now())
        return cls(tokenizer, template, hashlib.sha256(raw).hexdigest())

    def render(self, messages: list[dict], add_generation_prompt: bool = False, tools: Any = None) -> str:
        """The text that the chat template makes of the messages. Raises `Refused`."""
        talk = conversation(messages, tools)
        return self._render(talk.messages, talk.tools, add_generation_prompt)

    def encode(self, messages: list[dict], tools: Any = None) -> Encoded:
        """Token ids and trained marks of a conversation. Raises `Refused` with the reason for a row of no use."""
        return self.encode_conversation(conversation(messages, tools))

    def decode(self, tokens: np.ndarray) -> str:
        """The text of token ids, that of special tokens included. tokens: uint32 [n]"""
        return self._tokenizer.decode(tokens.tolist(), skip_special_tokens=False)

    def encode_conversation(self, talk: Conversation) -> Encoded:
        whole = self._tokenise(talk.messages, talk.tools)
        trained = np.zeros(len(whole.ids), np.uint8)
        try:
            for index, wanted in enumerate(talk.trained):
                if wanted:
                    first, last = self._span(talk, index, whole)
                    trained[first : last + 1] = 1
        except Refused as refused:
            raise Refused(refused.reason, refused.detail, len(whole.ids)) from None
        trained[:1] = 0  # nothing comes before it that could predict it
        if not trained.any():
            raise Refused("nothing_to_train", "no assistant turn to train", len(whole.ids))
        return Encoded(whole.ids, trained)

    def _render(self, messages: list[dict], tools: list[dict] | None, add_generation_prompt: bool = False) -> str:
        try:
            return self._template.render(messages, tools, add_generation_prompt)
        except Exception as error:  # a template is a program: on odd messages it may raise anything
            raise Refused("malformed", f"the chat template refuses it: {error}") from None

    def _span(self, talk: Conversation, index: int, whole: _Tokenised) -> tuple[int, int]:
        """First and last token of the trained span of an assistant turn. Raises `Refused`."""
        number = f"message {index + 1}"
        try:
            prompt = self._render(talk.messages[:index], talk.tools, add_generation_prompt=True)
        except Refused as refused:
            raise Refused("nothing_to_train", f"{number}: no prompt before the answer ({refused.detail})") from None
        if not whole.text.startswith(prompt):
            raise Refused("nothing_to_train", f"{number}: the template renders the prompt differently before an answer")
        last = self._end_of_turn(talk, index, whole, len(prompt))
        if last is None:
            raise Refused("nothing_to_train", f"{number}: no end-of-turn token found for this answer")
        first = int(np.searchsorted(whole.ends, len(prompt), side="right"))
        if whole.starts[first] < len(prompt):
            raise Refused("nothing_to_train", f"{number}: its first token begins inside the generation prompt")
        lost = _lost(talk.messages[index], whole.text[len(prompt) : whole.ends[last]])
        if lost:
            raise Refused(
                "nothing_to_train", f"{number}: the template drops or changes its {lost} (train: false keeps the row)"
            )
        return first, last

    def _end_of_turn(self, talk: Conversation, index: int, whole: _Tokenised, begin: int) -> int | None:
        """Index in `whole` of the token that ends the assistant turn whose answer begins at character `begin`."""
        after = whole.controls[whole.starts[whole.controls] >= begin]
        if index + 1 == len(talk.messages):
            return int(after[-1]) if len(after) else None
        upto = self._render(talk.messages[: index + 1], talk.tools)
        if whole.text.startswith(upto):
            within = after[whole.ends[after] <= len(upto)]
            return int(within[-1]) if len(within) else None
        # The template renders a turn differently once others follow it (Qwen3 leaves out its thoughts). Then the
        # last rendering tells which token ends a turn, and the first such token after the prompt ends this one.
        alone = self._tokenise(talk.messages[: index + 1], talk.tools)
        if not len(alone.controls):
            return None
        same = after[whole.ids[after] == alone.ids[alone.controls[-1]]]
        return int(same[0]) if len(same) else None

    def _tokenise(self, messages: list[dict], tools: list[dict] | None) -> _Tokenised:
        text = self._render(messages, tools)
        # The roles are the template's words, whatever else they may spell.
        contents = [{key: value for key, value in message.items() if key != "role"} for message in messages]
        if any(map(self._find_special.search, _strings([contents, tools]))):
            ids, starts, ends = self._encode_marked(text, messages, tools)
        else:
            ids, starts, ends = self._encode(text)
        return _Tokenised(text, ids, starts, ends, np.flatnonzero(self._is_special[ids]))

    def _encode(self, text: str, plain: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ids uint32 [n], starts int64 [n], ends int64 [n]). `plain`: special tokens' text is ordinary text."""
        self._tokenizer.encode_special_tokens = plain
        try:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            raise Refused("malformed", "text that is not valid Unicode (half of a surrogate pair)") from None
        except BaseException as error:
            if not _of_tokenizers(error):
                raise
            raise Refused("malformed", f"the tokenizer fails on it: {error}") from None
        offsets = np.fromiter(chain.from_iterable(encoding.offsets), np.int64, 2 * len(encoding))
        return np.array(encoding.ids, np.uint32), offsets[0::2], offsets[1::2]

    def _encode_marked(self, text: str, messages: list[dict], tools: list[dict] | None) -> list[np.ndarray]:
        """As `_encode`, for messages that spell special tokens: those of the template alone become tokens.

        The template is rendered a second time with a private-use character in place of each such spelling; what
        the tokenizer then finds are the template's own control tokens. Since it splits the text at them before all
        else, the pieces between can be encoded one by one, as plain text, with the spellings put back.
        """
        mark = _unused_characters(text, self._special_texts)
        restore = str.maketrans({character: special for special, character in mark.items()})

        def replace(string: str) -> str:
            return self._find_special.sub(lambda found: mark[found[0]], string)

        marked_messages = [{**_mapped(message, replace), "role": message["role"]} for message in messages]
        marked = self._render(marked_messages, _mapped(tools, replace))
        ids, starts, ends = self._encode(marked)
        controls = np.flatnonzero(self._is_special[ids])
        pieces, split_ids, at = [], [], 0
        for token, begin, stop in zip([*controls, None], [0, *ends[controls]], [*starts[controls], len(marked)]):
            piece = marked[begin:stop].translate(restore)
            piece_ids, piece_starts, piece_ends = self._encode(piece, plain=True)
            pieces.append((piece_ids, piece_starts + at, piece_ends + at))
            split_ids.append(self._encode(marked[begin:stop], plain=True)[0])
            at += len(piece)
            if token is not None:
                width = ends[token] - starts[token]
                pieces.append((ids[[token]], np.array([at]), np.array([at + width])))
                split_ids.append(ids[[token]])
                at += width
        columns = [np.concatenate(column) for column in zip(*pieces)]
        # A template may look at what we replaced, a tokenizer may look beyond its control tokens. Both can be seen.
        same = marked.translate(restore) == text and np.array_equal(np.concatenate(split_ids), ids)
        if not same or np.count_nonzero(self._is_special[columns[0]]) != len(controls):
            raise Refused("malformed", "a message spells a special token, and it cannot be kept apart from a real one")
        return columns


def _unused_characters(text: str, specials: list[str]) -> dict[str, str]:
    """special token -> a private-use character that `text` does not hold."""
    for base in range(0xF0000, 0x10F000, 0x1000):
        if not re.search(f"[{chr(base)}-{chr(base + len(specials))}]", text):
            return {special: chr(base + i) for i, special in enumerate(specials)}
    raise Refused("malformed", "the text uses up the private-use characters")


def _strings(value: Any) -> list[str]:
    """Every string inside nested lists and dicts, keys included."""
    found: list[str] = []
    _mapped(value, lambda string: found.append(string) or string)
    return found


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of nested lists and dicts with every string changed, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_mapped(item, change) for item in value]
    if isinstance(value, dict):
        return {_mapped(key, change): _mapped(item, change) for key, item in value.items()}
    return value


def _lost(message: dict[str, Any], span: str) -> str | None:
    """What of an assistant message is not in its trained span as it was given."""
    if message.get("content", "") not in span:
        return "text"
    for key in REASONING:
        # Templates set thoughts between tags on lines of their own.
        if isinstance(message.get(key), str) and message[key].strip() not in span:
            return key
    for call in message.get("tool_calls") or []:
        function = call.get("function", call) if isinstance(call, dict) else {}
        if not isinstance(function, dict) or str(function.get("name")) not in span:
            return "tool calls"
    return None
