"""A tiny untrained Qwen2 model folder, as `from_pretrained` and skytrain read it, made without torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEMPLATE = Path(__file__).parent / "templates" / "qwen2_5.jinja"
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
ROLES = ["system", "user", "assistant"]
# One token each keeps the sequences short. They stay ordinary text: `special` is false, as the recipe wants.
TAGS = ["<|begin_of_thought|>", "<|end_of_thought|>", "<|begin_of_solution|>", "<|end_of_solution|>"]
# Qwen2's words: every digit stands alone, so that sums are worked out digit by digit.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Size:
    """vocabulary: rows of the embedding; the tokenizer has a few less, as Qwen's own have."""

    vocabulary: int = 320
    hidden: int = 128
    intermediate: int = 384
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2


INIT_STD = 0.06
"""Qwen2's own 0.02 is for widths of thousands; at a width of 128 the loss falls much later with it."""


def write_model_folder(folder: Path, texts: Iterable[str], seed: int, size: Size = Size()) -> int:
    """Writes config, weights, tokenizer and chat template into `folder`; returns the number of parameters."""
    folder.mkdir(parents=True)
    tokenizer = make_tokenizer(texts, size.vocabulary)
    end_of_text, turn_end = (tokenizer.token_to_id(text) for text in (END_OF_TEXT, TURN_END))
    weights = initial_weights(seed, size)
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {
        "config.json": model_config(turn_end, size),
        "generation_config.json": {
            "do_sample": False,
            "eos_token_id": [turn_end, end_of_text],
            "pad_token_id": end_of_text,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2Tokenizer",
            "bos_token": None,
            "eos_token": TURN_END,
            "pad_token": END_OF_TEXT,
            "unk_token": None,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 512,
            "chat_template": TEMPLATE.read_text(encoding="utf-8"),
        },
    }
    for name, values in settings.items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return sum(tensor.size for tensor in weights.values())


def make_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE learned from `texts` and the names of the roles, with Qwen2's words and turn tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    controls = [END_OF_TEXT, TURN_START, TURN_END]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(controls) - len(TAGS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The tags are cut out, or merges would be spent on their letters.
    tag = re.compile("|".join(map(re.escape, TAGS)))
    pieces = [piece for text in [*texts, *ROLES] for piece in tag.split(text)]
    tokenizer.train_from_iterator(pieces, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in controls])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in TAGS])
    return tokenizer


def model_config(turn_end: int, size: Size) -> dict:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": size.vocabulary,
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "initializer_range": INIT_STD,
        "bos_token_id": None,
        "eos_token_id": turn_end,
        "torch_dtype": "float32",
    }


def initial_weights(seed: int, size: Size) -> dict[str, np.ndarray]:
    """Name to fp32 tensor. Matrices are normal, norms 1, biases 0.

    The two matrices of a layer that write into the residual stream are smaller by sqrt(2 x layers), so that the
    stream's variance does not grow with depth (GPT-2).
    """
    rng = np.random.default_rng(seed)

    def normal(rows: int, columns: int, scale: float = 1.0) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) * (INIT_STD * scale)).astype(np.float32)

    kv_width, residual = size.hidden // size.heads * size.kv_heads, 1 / math.sqrt(2 * size.layers)
    weights = {"model.embed_tokens.weight": normal(size.vocabulary, size.hidden)}
    for layer in range(size.layers):
        prefix = f"model.layers.{layer}."
        for name, width in (("q", size.hidden), ("k", kv_width), ("v", kv_width)):
            weights[f"{prefix}self_attn.{name}_proj.weight"] = normal(width, size.hidden)
            weights[f"{prefix}self_attn.{name}_proj.bias"] = np.zeros(width, np.float32)
        weights[f"{prefix}self_attn.o_proj.weight"] = normal(size.hidden, size.hidden, residual)
        weights[f"{prefix}mlp.gate_proj.weight"] = normal(size.intermediate, size.hidden)
        weights[f"{prefix}mlp.up_proj.weight"] = normal(size.intermediate, size.hidden)
        weights[f"{prefix}mlp.down_proj.weight"] = normal(size.hidden, size.intermediate, residual)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}{name}.weight"] = np.ones(size.hidden, np.float32)
    weights["model.norm.weight"] = np.ones(size.hidden, np.float32)
    return weights
