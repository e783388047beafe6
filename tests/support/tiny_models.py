"""Writes tiny Hugging Face model folders with transformers: 2 layers, width 64, a byte-level tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

LLAMA31_SCALING = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_SCALING = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
# Per family: transformers' classes, and settings that differ from the common ones.
FAMILIES = {
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, {}),
    # Heads wider than hidden / heads, as in Qwen3-32B.
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, {"head_dim": 32}),
    "llama3": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {"rms_norm_eps": 1e-5}),
    "llama31": (
        transformers.LlamaConfig,
        transformers.LlamaForCausalLM,
        {"rms_norm_eps": 1e-5, "rope_parameters": LLAMA31_SCALING},
    ),
    "yarn": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, {"rope_parameters": YARN_SCALING}),
}
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # ids 256, 257, 258
VOCAB_SIZE = 321  # odd: no number of ranks divides it

CHATML = """{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""


def write_tiny_model(
    folder: str | Path,
    family: str = "qwen2",
    *,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    shard_bytes: int = 50_000_000_000,
    **settings: object,
) -> Path:
    """A model of random weights, non-zero biases and uneven norms, written as transformers writes it; its folder.

    `settings` go to transformers' config class. `shard_bytes` below the model's size gives several shards and an index.
    """
    config_class, model_class, own = FAMILIES[family]
    common = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": None,
        "eos_token_id": 256,
        "tie_word_embeddings": tied,
    }
    model = model_class(config_class(**(common | own | settings)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            # Large enough that every bias, norm and rotary setting shows in the logits.
            noise = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.copy_(noise if parameter.ndim > 1 else noise + parameter)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_bytes)
    write_tiny_tokenizer(folder)
    return Path(folder)


def write_tiny_tokenizer(folder: str | Path, chat_template: str = CHATML) -> None:
    """tokenizer.json and tokenizer_config.json: one token a byte, and ChatML's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS])
    tokenizer.save(str(Path(folder) / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "chat_template": chat_template,
    }
    (Path(folder) / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
