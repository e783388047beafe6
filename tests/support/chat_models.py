"""Writes small tokenizer folders in the true formats of Qwen2.5, Qwen3 and Llama 3, with templates of our own wording.

Byte-level BPE is trained on a little text with each family's pre-tokenizer; ids follow the true layout, the added
tokens behind the base vocabulary.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = Path(__file__).parent
TEMPLATES = {
    "qwen2_5": HERE.parents[1] / "launch" / "templates" / "qwen2_5.jinja",
    "qwen3": HERE / "qwen3.jinja",
    "llama3": HERE / "llama3.jinja",
    "llama3_1": HERE / "llama3_1.jinja",
}

LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
DIGITS = {"qwen": r"\p{N}", "llama": r"\p{N}{1,3}"}

QWEN2_5_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"]
QWEN2_5_SPECIAL += ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
QWEN2_5_PLAIN = ["<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"]
QWEN3_PLAIN = [*QWEN2_5_PLAIN, "<tool_response>", "</tool_response>", "<think>", "</think>"]
LLAMA3_SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|start_header_id|>"]
LLAMA3_SPECIAL += ["<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"]

TEXT = [
    "You are a helpful assistant. The user asks a question and the assistant answers it step by step.",
    "What is 12 + 345? First add 12 and 345, which gives 357. So the answer is 357.\n\nThanks! Why is the sky blue?",
    "system user assistant tool function arguments name: {\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": 2}}\n",
    "def add(a, b):\n    return a + b\n\nprint(add(1, 2))\n\n# It's what we're doing, isn't it?\n",
    "Über café naïve 你好 世界 Привет мир 🙂 — “quoted” … don't, we'll, I'd, they've.\r\n\r\n   indented\ttabbed\n",
    "im_start im_end endoftext begin_of_text eot_id <|im_ start|> | > < || think tool_call",
]  # fmt: skip


@cache
def _trained(family: str, vocab_size: int) -> str:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(f"{LETTERS}|{DIGITS[family]}|{SIGNS}"), behavior="isolated", invert=False)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXT * 5, trainer)
    return tokenizer.to_str()


def _tokenizer(family: str, special: list[str], plain: list[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer.from_str(_trained(family, vocab_size))
    if family == "qwen":
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    if family == "llama":
        # The true file's: it trims blanks off the offsets and puts <|begin_of_text|> before every text.
        bos = special[0]
        begin = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), begin])
    return tokenizer


def _write(folder: Path, tokenizer: Tokenizer, config: dict, template: str, form: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {
        str(i): {
            "content": token.content,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token.special,
        }
        for i, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    config = {"added_tokens_decoder": added, "clean_up_tokenization_spaces": False, **config}
    if form == "jinja":
        (folder / "chat_template.jinja").write_bytes(template.encode())
    else:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    return folder


def write_qwen2_5(folder: Path, *, template: str | None = None, vocab_size: int = 600, form: str = "config", **config):
    """`form`: where the chat template is, "config" (tokenizer_config.json) or "jinja" (chat_template.jinja)."""
    tokenizer = _tokenizer("qwen", QWEN2_5_SPECIAL, QWEN2_5_PLAIN, vocab_size)
    named = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "model_max_length": 131072,
        "errors": "replace",
        "split_special_tokens": False,
        "additional_special_tokens": QWEN2_5_SPECIAL[1:],
    }
    return _write(folder, tokenizer, {**named, **config}, template or _template("qwen2_5"), form)


def write_qwen3(folder: Path, *, template: str | None = None, vocab_size: int = 600, form: str = "config", **config):
    tokenizer = _tokenizer("qwen", QWEN2_5_SPECIAL, QWEN3_PLAIN, vocab_size)
    named = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "model_max_length": 131072,
        "additional_special_tokens": QWEN2_5_SPECIAL[1:],
    }
    return _write(folder, tokenizer, {**named, **config}, template or _template("qwen3"), form)


def write_llama3(
    folder: Path, *, version: str = "llama3", template: str | None = None, vocab_size: int = 600, form: str = "config"
):
    """`version`: "llama3" or "llama3_1", which differ in the chat form."""
    tokenizer = _tokenizer("llama", LLAMA3_SPECIAL, [], vocab_size)
    named = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": {
            "__type": "AddedToken",
            "content": "<|eot_id|>",
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
        },
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 131072,
    }
    return _write(folder, tokenizer, named, template or _template(version), form)


def _template(name: str) -> str:
    return TEMPLATES[name].read_bytes().decode()


WRITERS = {
    "qwen2_5": write_qwen2_5,
    "qwen3": write_qwen3,
    "llama3": write_llama3,
    "llama3_1": lambda folder, **options: write_llama3(folder, version="llama3_1", **options),
}
