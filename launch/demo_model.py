"""A tiny untrained Qwen2 model folder, as `from_pretrained` and skytrain read it, made with numpy alone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# One token each keeps the sequences short. They stay ordinary text: `special` is false, as the recipe wants.
TAGS = ["<|begin_of_thought|>", "<|end_of_thought|>", "<|begin_of_solution|>", "<|end_of_solution|>"]
# Qwen2's split of text into words: what matters here is that every digit stands alone.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MOST_TOKENS = 384

HIDDEN, LAYERS, HEADS, KV_HEADS, INTERMEDIATE = 128, 4, 4, 2, 384
INIT_STD = 0.02


def make_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Byte-level BPE learned from `texts`, with Qwen2's words, turn tokens and normal form."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = len(TAGS) + 3
    trainer = trainers.BpeTrainer(
        vocab_size=MOST_TOKENS - added, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in (END_OF_TEXT, TURN_START, TURN_END)])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in TAGS])
    return tokenizer


def write_model(folder: Path, texts: Iterable[str], template: str, seed: int) -> int:
    """Writes the folder: tokenizer learned from `texts`, chat template, seeded random weights. Returns the parameters."""
    folder.mkdir(parents=True)
    tokenizer = make_tokenizer(texts)
    tokenizer.save(str(folder / "tokenizer.json"))
    turn_end, text_end = tokenizer.token_to_id(TURN_END), tokenizer.token_to_id(END_OF_TEXT)
    vocab_size = tokenizer.get_vocab_size()
    weights = _weights(vocab_size, np.random.default_rng(seed))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write(folder / "config.json", {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "torch_dtype": "float32",
        "vocab_size": vocab_size, "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 512,
        "initializer_range": INIT_STD, "tie_word_embeddings": True, "use_sliding_window": False,
        "bos_token_id": text_end, "eos_token_id": turn_end,
    })  # fmt: skip
    _write(folder / "generation_config.json", {"eos_token_id": [turn_end, text_end], "pad_token_id": text_end})
    _write(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": TURN_END, "pad_token": END_OF_TEXT,
        "model_max_length": 512, "clean_up_tokenization_spaces": False, "chat_template": template,
    })  # fmt: skip
    return sum(weight.size for weight in weights.values())


def _weights(vocab_size: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """fp32, by Hugging Face's names: normal(0, INIT_STD), norms at 1, biases at 0; the head is the embedding."""
    head = HIDDEN // HEADS

    def normal(rows: int, columns: int) -> np.ndarray:
        return (INIT_STD * rng.standard_normal((rows, columns))).astype(np.float32)

    def ones() -> np.ndarray:
        return np.ones(HIDDEN, np.float32)

    weights = {"model.embed_tokens.weight": normal(vocab_size, HIDDEN), "model.norm.weight": ones()}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        for projection, rows in (("q", HIDDEN), ("k", KV_HEADS * head), ("v", KV_HEADS * head)):
            weights[f"{name}.self_attn.{projection}_proj.weight"] = normal(rows, HIDDEN)
            weights[f"{name}.self_attn.{projection}_proj.bias"] = np.zeros(rows, np.float32)
        weights[f"{name}.self_attn.o_proj.weight"] = normal(HIDDEN, HIDDEN)
        weights[f"{name}.mlp.gate_proj.weight"] = normal(INTERMEDIATE, HIDDEN)
        weights[f"{name}.mlp.up_proj.weight"] = normal(INTERMEDIATE, HIDDEN)
        weights[f"{name}.mlp.down_proj.weight"] = normal(HIDDEN, INTERMEDIATE)
        weights[f"{name}.input_layernorm.weight"] = ones()
        weights[f"{name}.post_attention_layernorm.weight"] = ones()
    return weights


def _write(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
