"""Every setting of a training run, with its default: a TOML recipe plus `section.key=value` overrides.

An unknown key, a wrong type or a value out of range is a `UserError` that names the key. The resolved
settings are written into the run folder before step 0, in the same TOML form, so that they can be run again.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from skytrain.config_rules import FLOAT8_TOKENS, broken
from skytrain.errors import UserError
from skytrain.files import read_regular, unopened

PLAIN = {
    "float": "a number",
    "int": "a whole number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "none",
}
"""What msgspec calls the types."""


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the recipe."""


class Run(Section):
    dir: str
    """Folder of this run: config.toml, metrics.jsonl, tensorboard/, checkpoints/, export/."""
    seed: int = 0
    """Seeds the order of the documents, and torch."""


class Model(Section):
    path: str
    """Hugging Face folder: config.json, safetensors, tokenizer."""


class Data(Section):
    path: str
    """Folder written by `skytrain prep tokenize`."""
    validation: str | None = None
    """A held-out folder of the same kind; its loss is logged every `train.validate_every` steps and at the end."""


class Batch(Section):
    documents: int | None = None
    """Documents in one optimizer step, over all ranks. Exactly one of `documents` and `tokens` is set."""
    tokens: int | None = None
    """Most tokens in one optimizer step, over all ranks: whole documents in order, as many as fit."""
    max_tokens: int = 16384
    """Most tokens in one packed row, so in one micro-batch of one rank."""


class Optim(Section):
    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    """Decoupled. Never applied to norms and biases (tensors of one dimension)."""
    clip: float | None = 1.0
    """Largest norm of the whole gradient; none for no clipping."""
    decay_embeddings: bool = True
    """Whether weight decay applies to the token embedding, and to the head where it is the same tensor."""
    format: Literal["auto", "fp32", "fp32_8bit", "split_8bit", "host", "host_8bit"] = "auto"
    """Of weights, gradients and AdamW's moments on a rank: fp32 (16 bytes a parameter); fp32 with 8-bit moments (10.1);
    or bf16 weights with the 16 bits that make them fp32, bf16 gradients and 8-bit moments (8.1); or bf16 weights and
    gradients (4) with fp32 weights and moments in host memory (12 there; with 8-bit moments 6.1), and AdamW on the
    host's cores. How an 8-bit code is rounded depends on the sharding, so that runs on other numbers of ranks differ by
    it. auto: the first of these that the device's memory holds with 4 GB to spare by the plan (fp32 where the hardware
    table does not know the device); a resumed run stays with what it began with."""


class Schedule(Section):
    name: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup_ratio: float | None = None
    """Part of all steps over which the learning rate rises from 0. At most one of the two warm-ups is set."""
    warmup_steps: int | None = None
    min_ratio: float = 0.0
    """Floor, as a part of the peak, reached at the last step."""
    decay_ratio: float = 0.1
    """WSD: the part of all steps, at the end, over which the rate falls."""


class Train(Section):
    epochs: int = 1
    max_steps: int | None = None
    """Ends the run (and its schedule) at this step, if the epochs have not ended it before."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of compute and of gathered weights. Master weights are always fp32."""
    compile: bool = False
    """torch.compile of each decoder layer."""
    float8: Literal["tensorwise", "rowwise"] | None = None
    """Products of the decoder layers in float8 (torchao), with one scale a tensor or one a row. On a GPU from sm_89 on
    (rowwise: sm_90), compiled; on a CPU emulated. Rows are filled up to a multiple of 16 tokens."""
    deterministic: bool = False
    """Deterministic kernels on a GPU (slower); a CPU run always is."""
    max_bad_steps: int = 5
    """So many skipped (non-finite) steps in a row end the run, with a saved checkpoint."""
    spike_factor: float | None = None
    """A step whose loss is over so many times the median of the 50 before it is undone: the run goes back to its last
    checkpoint, and steps over that step's documents. Looked at when a line is logged and before a checkpoint."""
    validate_every: int | None = None
    device: Literal["auto", "cuda", "cpu"] = "auto"
    threads: int | None = None
    """CPU threads a rank; none: the machine's cores divided by its ranks."""
    timeout_seconds: int = 1800
    """Of a collective operation."""
    stall_seconds: int = 600
    """A rank that has died, or that does nothing new for so long, is named, and all end. More than the longest of: the
    compilation of a step, one micro-batch, reading or writing one file."""

    @property
    def row_multiple(self) -> int:
        """Of tokens, which rows are filled up to."""
        return 1 if self.float8 is None else FLOAT8_TOKENS


class Activations(Section):
    checkpoint: Literal["none", "full", "selective"] = "none"
    """`none` keeps all that backward needs. `full` keeps only each layer's input and recomputes the layer in backward;
    `selective` does too, but for the operations of `keep` and `offload`."""
    keep: tuple[str, ...] = ()
    """Operations (attention, qkv, o_proj, gate, up) whose outputs stay on the device."""
    offload: tuple[str, ...] = ()
    """Operations whose outputs, or `input` for the layer's input, wait in (on a GPU: pinned) host memory."""
    budget_gib: float | Literal["auto"] | None = None
    """In the place of `keep` and `offload`: what each layer holds is chosen by the seconds it saves a byte, so that a
    rank uses at most so much device memory at the peak of a step, all counted. auto: the device's memory less 4 GB."""


class Attention(Section):
    backend: Literal["auto", "varlen", "flash_attn", "flash_attn_4", "cpu", "reference"] = "auto"


class Kernels(Section):
    backend: Literal["auto", "triton", "reference", "liger"] = "auto"
    """Of norms, SwiGLU, rotary embedding and head. auto: Triton on a GPU, plain PyTorch on a CPU."""
    head_chunk_mib: int = 512
    """Memory for one chunk of logits."""
    logits: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 halves the memory of a chunk, or doubles its rows; the loss then comes from rounded logits. (Liger's own
    head has none but logits of train.dtype.)"""


class Parallel(Section):
    reshard_after_forward: bool = True
    """Free a layer's gathered weights after its forward pass and gather them again in backward."""
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of gradients on their way between ranks, where they are added up. bfloat16 halves the bytes, and rounds; the
    head's gradient stays fp32."""
    nodes: int = 1
    """HSDP: weights are replicated over this many groups of ranks, and sharded within each."""


class Checkpoint(Section):
    every: int | None = None
    """Steps between checkpoints; one is always written at the end."""
    keep: int = 2
    """Newest complete checkpoints kept."""
    asynchronous: bool = True
    """A step waits only while the state is copied to host memory, and training goes on while the copy is written. The
    copy takes as much memory as the state."""


class Export(Section):
    every: int | None = None
    """Steps between Hugging Face exports."""
    at_end: bool = True
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    default_system: str = "none"
    """System turn put into the exported chat template: `none`, `dataset` (the one its rows share) or a text file."""


class Log(Section):
    every: int = 1
    """Steps between lines. Reading the numbers waits for the device, so a large run wants 10."""
    tensorboard: bool = True
    price_per_gpu_hour: float | None = None
    """Money so far is logged when it is given. In the user's currency."""


class Plan(Section):
    """What `skytrain plan` takes where nothing says it better: neither its options, nor a model folder or a data set at
    the recipe's paths. A run has the real ones, and reads none of this."""

    gpu: str = "h100-80gb"
    """A row of the hardware table."""
    gpus: int = 8
    model: str | None = None
    """A known model, as in qwen2.5-32b (skytrain/plan/models.toml)."""
    documents: int | None = None
    """Of an epoch; their lengths are drawn with this mean, the longest of batch.max_tokens."""
    mean_tokens: int | None = None


class Config(Section):
    run: Run
    model: Model
    data: Data
    batch: Batch
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    train: Train = Train()
    activations: Activations = Activations()
    attention: Attention = Attention()
    kernels: Kernels = Kernels()
    parallel: Parallel = Parallel()
    checkpoint: Checkpoint = Checkpoint()
    export: Export = Export()
    log: Log = Log()
    plan: Plan = Plan()


def load(recipe: str | Path, overrides: list[str] | None = None) -> Config:
    """Reads a recipe and applies `section.key=value` overrides (the value is TOML; a bare word is a string)."""
    path = Path(recipe)
    try:
        raw = tomllib.loads(read_regular(path).decode("utf-8"))
    except OSError as error:
        raise UserError(f"recipe {path}: {unopened(path, error)}; give the path of a TOML recipe") from None
    except (ValueError, RecursionError) as error:  # also numbers of too many digits, and brackets too deep
        raise UserError(f"recipe {path}: not TOML: {error}") from None
    for override in overrides or []:
        _apply(raw, override)
    return resolve(raw, str(path), {override.partition("=")[0]: override for override in overrides or []})


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.partition(".")
    if not equals or not dot or not section or not name:
        raise UserError(f"override {override!r}: expected section.key=value, as in optim.lr=1e-5")
    table = raw.setdefault(section, {})
    if not isinstance(table, dict):
        raise UserError(f"override {override!r}: {section!r} is not a section of the recipe")
    try:
        override.encode()
    except UnicodeEncodeError:
        raise UserError(f"override {override!r}: not UTF-8") from None
    if "\n" in text or "\r" in text:
        raise UserError(f"override {override!r}: holds more than one line; give each setting by itself")
    try:
        table[name] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        table[name] = text
    except (ValueError, RecursionError) as error:
        raise UserError(f"override {override[:80]!r}: not a value that can be read ({error})") from None


def resolve(raw: dict[str, Any], where: str, given: Mapping[str, str] | None = None) -> Config:
    """The settings of parsed TOML. UserError for the first that is not right: it calls the recipe `where`, or tells the
    override by which the setting stands there. given: the overrides, by key."""
    for section in msgspec.structs.fields(Config):
        table = raw.get(section.name)
        if isinstance(table, dict):
            for field in msgspec.structs.fields(section.type):
                # TOML has no null: the word "none" stands for it, where a setting may be absent.
                if table.get(field.name) == "none" and type(None) in typing.get_args(field.type):
                    table[field.name] = None
    try:
        config = msgspec.convert(raw, Config)
    except msgspec.ValidationError as error:
        told, _, place = str(error).partition(" - at `$.")
        raise _mistake(told, place.rstrip("`"), where, given or {}) from None
    for key, value, advice in broken(config):
        setting = (given or {}).get(key)
        raise UserError(f"setting {setting}: {advice}" if setting else f"recipe {where}: {key} = {value!r}: {advice}")
    return config


def _mistake(told: str, place: str, where: str, given: Mapping[str, str]) -> UserError:
    """told, place: msgspec's message, and the section or the key (with an index in it) that it is about."""
    unknown = re.search("unknown field `(.*)`", told, re.DOTALL)
    key = ".".join(filter(None, (place, unknown and unknown[1])))
    names = _names(place) if unknown else []
    known = f" there are {', '.join(names)}" if unknown else ""
    # An unknown section is there by any setting of it.
    setting = given.get(key.partition("[")[0]) or next((given[one] for one in given if one.startswith(f"{key}.")), None)
    if setting is None:
        return UserError(f"recipe {where}: {place or 'top level'}: {told}{known and f';{known}'}")
    if unknown is None:
        return UserError(f"setting {setting}: {plain(told)}")
    near = difflib.get_close_matches(unknown[1], names, 1)
    meant = f"; did you mean {'.'.join(filter(None, (place, *near)))}?" if near else ";"
    return UserError(f"setting {setting}: there is no {key if place else f'section {key}'}{meant}{known}")


def _names(section: str) -> list[str]:
    """Of the settings in a section, or of the sections."""
    fields = {field.name: field.type for field in msgspec.structs.fields(Config)}
    return [field.name for field in msgspec.structs.fields(fields.get(section, Config))]


def plain(told: str) -> str:
    """msgspec's message of a wrong type, in words: ``Expected `float | null`, got `str` `` is "expected a number or
    none, got text"."""
    types = re.fullmatch("Expected `([a-z |]+)`, got `([a-z]+)`", told)
    if types is None:
        return told
    expected, got = (" or ".join(PLAIN.get(one, one) for one in side.split(" | ")) for side in types.groups())
    return f"expected {expected}, got {got}"


def dumps(config: Config) -> str:
    """The settings as TOML that `load` reads back to an equal `Config`."""
    lines = []
    for section, table in msgspec.to_builtins(config).items():
        lines += [f"[{section}]", *(f"{key} = {toml(value)}" for key, value in table.items()), ""]
    return "\n".join(lines)


def flat(config: Config) -> dict[str, Any]:
    """Key (`section.name`) to value, of all settings, as JSON holds them."""
    tables = json.loads(msgspec.json.encode(config))
    return {f"{section}.{key}": value for section, table in tables.items() for key, value in table.items()}


def toml(value: Any) -> str:
    """A setting as TOML."""
    if value is None:
        return '"none"'
    if isinstance(value, float):
        return repr(value)
    # JSON's strings, numbers, booleans and flat lists are TOML's as well; DEL alone is not allowed raw in TOML.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
