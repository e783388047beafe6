"""Hugging Face folders in: config.json to `ModelConfig`, safetensors to sharded parameters.

What config.json asks for and the decoder does not do is refused by name: a setting that is passed over gives a model
that trains, and is wrong. (Folders out: export.py.)
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard

from skytrain import progress
from skytrain.errors import UserError
from skytrain.files import read_regular, unique_keys
from skytrain.model import ModelConfig
from skytrain.model_folder import absent
from skytrain.rotary import Rope, yarn_attention_factor

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

# Bounded above by what no model has: a slip of the hand would overflow, or take hours to build.
Count, Width, Heads, Layers = (Annotated[int, msgspec.Meta(ge=1, le=n)] for n in (2**31 - 1, 2**24, 2**16, 1000))
# Bounded above, because a JSON number like 1e999 is read as infinity.
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e15)]


class _RopeKeys(msgspec.Struct, forbid_unknown_fields=True):
    """`rope_scaling` (transformers 4) or `rope_parameters` (5)."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: Positive | None = None
    factor: Positive | None = None
    original_max_position_embeddings: Count | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    attention_factor: Positive | None = None
    beta_fast: Positive | None = None
    beta_slow: Positive | None = None
    mscale: Annotated[float, msgspec.Meta(ge=0, le=1e15)] | None = None
    mscale_all_dim: Annotated[float, msgspec.Meta(ge=0, le=1e15)] | None = None
    truncate: bool = True
    partial_rotary_factor: float | None = None


class _ConfigKeys(msgspec.Struct):
    """The keys of config.json that say how the model computes; keys not named here do not."""

    vocab_size: Width
    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Heads
    model_type: str | None = None
    architectures: list[str] | None = None
    num_key_value_heads: Heads | msgspec.UnsetType | None = msgspec.UNSET
    head_dim: Heads | msgspec.UnsetType | None = msgspec.UNSET
    max_position_embeddings: Count | None = None
    rms_norm_eps: Positive = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    rope_theta: Positive | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    original_max_position_embeddings: Count | None = None
    # Only ever refused:
    partial_rotary_factor: float | None = None
    hidden_act: str = "silu"
    mlp_bias: bool = False
    attention_dropout: float | None = 0.0
    pretraining_tp: int | None = 1
    use_mrope: bool = False
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    layer_types: list[str] | None = None
    quantization_config: dict[str, Any] | None = None
    num_experts: int | None = None
    num_local_experts: int | None = None
    n_routed_experts: int | None = None


def read_config(folder: str | Path) -> ModelConfig:
    """config.json of a model folder, as transformers 4 or 5 writes it; absent keys have transformers' defaults.

    UserError: no such file, not JSON, a wrong type, a key that is missing, or a setting that is not implemented.
    """
    path = Path(folder) / "config.json"
    try:
        keys = msgspec.convert(read_json(path), _ConfigKeys)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: {error}; this decoder needs the config of a Qwen2, Qwen3 or Llama model") from None
    family = _family(path, keys)
    _refuse(path, keys)
    heads = keys.num_attention_heads
    kv_heads = keys.num_key_value_heads
    if kv_heads is msgspec.UNSET:
        kv_heads = None if family == "llama" else 32
    head_dim = keys.head_dim
    if head_dim is msgspec.UNSET:
        head_dim = 128 if family == "qwen3" else None
    if head_dim is None and keys.hidden_size % heads:
        raise UserError(f"{path}: hidden_size {keys.hidden_size} is not a multiple of num_attention_heads {heads}")
    head_dim, kv_heads = head_dim or keys.hidden_size // heads, kv_heads or heads
    if heads % kv_heads or head_dim % 2:
        raise UserError(
            f"{path}: num_attention_heads {heads} must be a multiple of num_key_value_heads {kv_heads}, "
            f"and head_dim {head_dim} even"
        )
    length = keys.max_position_embeddings or (2048 if family == "llama" else 32768)
    return ModelConfig(
        model_type=family,
        vocab_size=keys.vocab_size,
        hidden_size=keys.hidden_size,
        intermediate_size=keys.intermediate_size,
        num_hidden_layers=keys.num_hidden_layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=keys.rms_norm_eps,
        max_position_embeddings=length,
        tie_word_embeddings=keys.tie_word_embeddings,
        rope=_read_rope(path, keys, length),
        # Qwen2 has these three biases whatever `attention_bias` says.
        qkv_bias=family == "qwen2" or keys.attention_bias,
        output_bias=family != "qwen2" and keys.attention_bias,
        qk_norm=family == "qwen3",
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; UserError where there is none."""
    try:
        value = json.loads(read_regular(path).decode("utf-8"), parse_constant=_not_json, object_pairs_hook=unique_keys)
        json.dumps(value, ensure_ascii=False).encode()  # Half a surrogate pair, escaped, is no text.
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}" if path.exists() else absent(path)) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); download it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object")
    return value


def _not_json(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _family(path: Path, keys: _ConfigKeys) -> str:
    known = ", ".join(ARCHITECTURES)
    named = keys.architectures or []
    family = keys.model_type
    if family is None:
        family = next((name for name, architecture in ARCHITECTURES.items() if architecture in named), None)
    if family not in ARCHITECTURES:
        raise UserError(f"{path}: model_type {family!r} (architectures {named}) is not implemented; known: {known}")
    if named and ARCHITECTURES[family] not in named:
        raise UserError(f"{path}: architectures {named} is not implemented for {family}: a causal language model only")
    return family


def _refuse(path: Path, keys: _ConfigKeys) -> None:
    """UserError that names the first setting in use that the decoder does not implement."""
    kinds = set(keys.layer_types or ["full_attention"])
    slides = keys.use_sliding_window and keys.sliding_window is not None
    checks = {
        "quantization_config": (keys.quantization_config is not None, "give the folder of the unquantised model"),
        "hidden_act": (keys.hidden_act != "silu", "only silu is"),
        "mlp_bias": (keys.mlp_bias, "only false is"),
        "attention_dropout": (bool(keys.attention_dropout), "only 0 is; set it to 0 to train without"),
        "pretraining_tp": (keys.pretraining_tp not in (None, 1), "only 1 is"),
        "partial_rotary_factor": (keys.partial_rotary_factor not in (None, 1.0), "only 1 is"),
        "use_mrope": (keys.use_mrope, "only false is"),
        "layer_types": (kinds != {"full_attention"}, "only full_attention is"),
        "use_sliding_window": (
            slides and keys.layer_types is None and keys.max_window_layers < keys.num_hidden_layers,
            "set it to false to train with full attention",
        ),
        "num_experts": (bool(keys.num_experts), "mixtures of experts are not"),
        "num_local_experts": (bool(keys.num_local_experts), "mixtures of experts are not"),
        "n_routed_experts": (bool(keys.n_routed_experts), "mixtures of experts are not"),
    }
    for key, (in_use, advice) in checks.items():
        if in_use:
            raise UserError(f"{path}: {key} = {getattr(keys, key)!r} is not implemented: {advice}")


def _read_rope(path: Path, keys: _ConfigKeys, length: int) -> Rope:
    # Where both are given transformers 5 takes rope_scaling, which only an older or a hand-edited file has.
    where = "rope_scaling" if keys.rope_scaling else "rope_parameters"
    try:
        rope = msgspec.convert(keys.rope_scaling or keys.rope_parameters or {}, _RopeKeys)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: {where}: {error}; it is not implemented in this form") from None
    kind = rope.rope_type or rope.type or "default"
    needed = {"default": [], "linear": ["factor"], "yarn": ["factor"]}
    needed["llama3"] = ["factor", "low_freq_factor", "high_freq_factor"]
    if kind not in needed:
        raise UserError(f"{path}: {where}: rope_type {kind!r} is not implemented; known: {', '.join(needed)}")
    if rope.partial_rotary_factor not in (None, 1.0):
        raise UserError(f"{path}: {where}: partial_rotary_factor = {rope.partial_rotary_factor} is not implemented")
    missing = [key for key in needed[kind] if getattr(rope, key) is None]
    if missing:
        raise UserError(f"{path}: {where}: rope_type {kind!r} needs {', '.join(missing)}")
    theta, low, high = (
        rope.rope_theta or keys.rope_theta or 10000.0, rope.low_freq_factor or 1.0, rope.high_freq_factor or 4.0
    )  # fmt: skip
    if theta <= 1 or (kind == "llama3" and low >= high):
        what = f"rope_theta = {theta}" if theta <= 1 else f"low_freq_factor {low} is not below high_freq_factor {high}"
        raise UserError(f"{path}: {where}: {what}: no rotary embedding has such frequencies")
    factor = rope.factor or 1.0
    attention = rope.attention_factor
    if attention is None:
        attention = yarn_attention_factor(factor, rope.mscale, rope.mscale_all_dim)
    return Rope(
        kind=kind,
        theta=theta,
        factor=factor,
        original_max_position_embeddings=(
            keys.original_max_position_embeddings or rope.original_max_position_embeddings or length
        ),
        low_freq_factor=low,
        high_freq_factor=high,
        attention_factor=attention if kind == "yarn" else 1.0,
        beta_fast=rope.beta_fast or 32.0,
        beta_slow=rope.beta_slow or 1.0,
        truncate=rope.truncate,
    )


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: its file, shape and safetensors dtype."""

    path: Path
    shape: tuple[int, ...]
    dtype: str


def stored_tensors(folder: str | Path) -> dict[str, StoredTensor]:
    """Name to place of every tensor of a model folder, from the files' headers.

    UserError: no safetensors, a shard that is missing, cut short or corrupt, an index that its files do not bear out.
    """
    folder = Path(folder)
    index = folder / INDEX_NAME
    promised: dict[str, str] | None = None
    if (folder / SINGLE_NAME).exists() or not index.exists():
        # As transformers: a single file goes before an index.
        files = [SINGLE_NAME]
    else:
        promised = read_json(index).get("weight_map")
        if not isinstance(promised, dict) or not promised:
            raise UserError(f"{index}: no weight_map; download the folder again")
        for key, name in promised.items():
            if not isinstance(name, str) or not re.fullmatch(r"[\w.-]{1,240}\.safetensors", name):
                raise UserError(f"{index}: tensor {key} is in {name!r}, no safetensors file here; download it again")
        files = sorted(set(promised.values()))
    found = {}
    for name in files:
        with opened(folder / name) as file:
            for key in file.keys():  # noqa: SIM118 (not a dict)
                part = file.get_slice(key)
                if key in found:
                    raise UserError(f"{folder / name}: tensor {key} is also in {found[key].path.name}; keep one")
                found[key] = StoredTensor(folder / name, tuple(part.get_shape()), str(part.get_dtype()))
    held = {key: tensor.path.name for key, tensor in found.items()}
    if promised is not None and promised != held:
        key = min(key for key in promised.keys() | held.keys() if promised.get(key) != held.get(key))
        said, there = promised.get(key, "nothing"), held.get(key, "nothing")
        raise UserError(f"{index}: says {said} of tensor {key}, and the files say {there}; download the folder again")
    return found


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """safe_open on the CPU; UserError for a file that is missing, cut short or corrupt."""
    try:
        if not path.is_file():
            raise UserError(absent(path))
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: corrupt or cut short ({error}); copy or download it again") from None


def check_weights(model: nn.Module, folder: str | Path) -> dict[str, StoredTensor]:
    """Where each parameter of `model`, on the meta device or not, lies in a model folder.

    UserError that names the tensor: missing, unknown, of another shape, or not of a floating dtype; also a tied head
    that is stored and differs from the embedding.
    """
    sources = stored_tensors(folder)
    parameters = dict(model.named_parameters())
    tied = HEAD not in parameters
    for name in list(sources):
        # Tables that old files hold; they follow from config.json.
        if name.endswith("rotary_emb.inv_freq"):
            del sources[name]
    _check_names(folder, sources, parameters, {HEAD} if tied else set())
    if tied and HEAD in sources:
        _check_tied_head(sources)
        del sources[HEAD]
    return sources


def load_weights(
    model: nn.Module,
    folder: str | Path,
    sources: dict[str, StoredTensor] | None = None,
    write: Callable[[str, Tensor], None] | None = None,
) -> None:
    """Fills every parameter of `model`, plain or DTensor on any mesh of Shard and Replicate, from a model folder.

    Parameters are materialised already (`to_empty`); each is read once, of a sharded one only this rank's rows.
    sources: what `check_weights` found; None: it is called, with its UserError. write: is given each parameter's name
    and the rows as they are stored; None: they are converted to the parameter's dtype.
    """
    sources = check_weights(model, folder) if sources is None else sources
    parameters = dict(model.named_parameters())
    for path in sorted({source.path for source in sources.values()}):
        with opened(path) as file, torch.no_grad():
            for name in (name for name, source in sources.items() if source.path == path):
                local, rows = _local_part(parameters[name])
                if not local.numel():
                    continue
                progress.mark()
                stored = file.get_slice(name)[rows]
                if write is None:
                    local.copy_(stored)
                else:
                    write(name, stored)


def _check_names(
    folder: str | Path, sources: dict[str, StoredTensor], parameters: dict[str, nn.Parameter], optional: set[str]
) -> None:
    for name in sorted(parameters.keys() - sources.keys()):
        raise UserError(f"{folder}: tensor {name} is missing; config.json and the safetensors are not of one model")
    for name in sorted(sources.keys() - parameters.keys() - optional):
        raise UserError(f"{sources[name].path}: tensor {name} is unknown to the model that config.json describes")
    for name, source in sources.items():
        if name not in parameters:
            continue
        shape = tuple(parameters[name].shape)
        if source.shape != shape:
            raise UserError(f"{source.path}: tensor {name} is {list(source.shape)}, config.json asks for {list(shape)}")
        if source.dtype not in ("BF16", "F16", "F32", "F64"):
            raise UserError(f"{source.path}: tensor {name} is {source.dtype}: give the folder of the unquantised model")


def _check_tied_head(sources: dict[str, StoredTensor], rows: int = 8192) -> None:
    """UserError unless the stored head is the stored embedding, compared a piece at a time, by every rank alike."""
    head, embedding = sources[HEAD], sources.get(EMBEDDING)
    same = embedding is not None and head.shape == embedding.shape
    if same:
        with opened(head.path) as a, opened(embedding.path) as b:
            a, b = a.get_slice(HEAD), b.get_slice(EMBEDDING)
            starts = range(0, head.shape[0], rows)
            same = all(torch.equal(a[i : i + rows], b[i : i + rows]) for i in starts)
    if not same:
        raise UserError(
            f"{head.path}: {HEAD} differs from {EMBEDDING}, but config.json says tie_word_embeddings; "
            "set it to false to train both"
        )


def _local_part(parameter: Tensor) -> tuple[Tensor, slice]:
    """This rank's piece of a parameter and the rows of the whole that it is (dimension 0 is the one FSDP2 shards)."""
    if not isinstance(parameter, DTensor):
        return parameter, slice(0, parameter.shape[0])
    start, stop = 0, parameter.shape[0]
    coordinate = parameter.device_mesh.get_coordinate()
    for dimension, placement in enumerate(parameter.placements):
        if isinstance(placement, Shard) and placement.dim == 0:
            # As torch.chunk: equal pieces, rounded up, the last ones short or empty.
            piece = math.ceil((stop - start) / parameter.device_mesh.size(dimension))
            start = min(start + piece * coordinate[dimension], stop)
            stop = min(start + piece, stop)
        elif not isinstance(placement, Replicate):
            raise NotImplementedError(f"loading into the placement {placement}")
    local = parameter.to_local()
    if local.shape[0] != stop - start:
        raise RuntimeError(f"this rank holds {local.shape[0]} rows, but rows {start} to {stop} were expected")
    return local, slice(start, stop)
