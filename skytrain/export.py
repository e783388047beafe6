"""Hugging Face folders out: what transformers and vLLM load as it is, written without ever holding the model.

Two callers: a run on N ranks, where each tensor is gathered from its shards (`model_tensors`), and `skytrain export`,
where each is read from a checkpoint without a process group. Either way a tensor is fetched, written and let go.
"""

from __future__ import annotations

import errno
import functools
import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from skytrain import progress, storage
from skytrain.data.chat import ChatTokenizer, Refused
from skytrain.errors import UserError, unwritten
from skytrain.files import read_regular
from skytrain.hf import ARCHITECTURES, INDEX_NAME, SINGLE_NAME, read_config, read_json

DTYPES = {torch.bfloat16: "bfloat16", torch.float32: "float32"}
SENT_BYTES = 4 << 20
"""Of a tensor on its way between ranks at a time."""
# Byte for byte, where the source has them. Never its weights, index, or code.
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)


class ExportTensor(NamedTuple):
    name: str
    shape: tuple[int, ...]
    fetch: Callable[[], Tensor]
    """The whole tensor on the CPU. On several ranks all call it, in the same order, and only the first one gets it."""


def model_tensors(
    model: nn.Module, dtype: torch.dtype, master: Callable[[str], Tensor] | None = None
) -> list[ExportTensor]:
    """The parameters of a model, plain or sharded, to be fetched in `dtype`; all ranks take part in each fetch.

    master: gives a parameter's exact values by its name (`Optimizer.master`); None: the parameters are exact.
    """

    def fetch(name: str, parameter: Tensor) -> Tensor:
        # What the model computes with may be of that dtype already.
        exact = (parameter if master is None or parameter.dtype == dtype else master(name)).detach()
        return _gathered(exact, dtype) if isinstance(exact, DTensor) else exact.to(dtype).cpu()

    return [
        ExportTensor(name, tuple(parameter.shape), functools.partial(fetch, name, parameter))
        for name, parameter in model.named_parameters()
    ]


def _gathered(tensor: DTensor, dtype: torch.dtype) -> Tensor:
    """The whole of a tensor, sharded by rows over the mesh's last dimension, in `dtype` on the first rank's CPU; the
    others send it their rows and get an empty one.

    In pieces, each converted on its way: `full_tensor` has every rank hold the whole, and its own copy of that.
    """
    if tensor.placements[-1] != Shard(0) or any(not p.is_replicate() for p in tensor.placements[:-1]):
        raise ValueError(f"placements {tensor.placements}: not FSDP2's")
    holders = tensor.device_mesh.mesh.reshape(-1, tensor.device_mesh.size(-1))[0].tolist()
    first, rank, local = holders[0], dist.get_rank(), tensor.to_local().reshape(-1)
    step = SENT_BYTES // dtype.itemsize
    if rank != first:
        for piece in local.split(step) if rank in holders and local.numel() else ():
            progress.mark()
            dist.send(piece.to(dtype), dst=first)
        return torch.empty(0, dtype=dtype)
    whole = torch.empty(tensor.shape, dtype=dtype)
    # As torch.chunk: all have as many rows as the first one, and the last ones fewer or none.
    rows = -(-tensor.shape[0] // len(holders)) * math.prod(tensor.shape[1:])
    for holder, part in zip(holders, whole.view(-1).split(max(rows, 1))):
        for piece, own in zip(part.split(step), local.split(step) if holder == first else itertools.repeat(None)):
            progress.mark()
            if own is None:
                own = torch.empty(len(piece), dtype=dtype, device=local.device)
                dist.recv(own, src=holder)
            piece.copy_(own)
    return whole


def default_system(setting: str, of_data: str | None) -> str | None:
    """What the setting export.default_system means: `none`, `dataset` or a text file, read without the white space at
    its ends. of_data: the system text that all rows of the data set share, None where they share none. UserError."""
    if setting == "none":
        return None
    if setting == "dataset":
        if of_data is None:
            raise UserError(
                "export.default_system = 'dataset': the data set's rows share no one system turn; give a file"
            )
        return of_data
    try:
        return read_regular(setting).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"export.default_system = {setting!r}: neither none nor dataset, nor a text file that can be read ({error})"
        ) from None


def export(
    tensors: Iterable[tuple[str, tuple[int, ...], Callable[[], Tensor]]],
    source: str | Path,
    out: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    default_system: str | None = None,
    is_writer: bool = True,
    shard_bytes: int = 5_000_000_000,
) -> Path:
    """Writes the model folder `out`: weights in `dtype` (bf16 or fp32), configs, tokenizer and chat template.

    `source` is the folder the model came from: its tokenizer files are copied as bytes, its config.json and
    generation_config.json with the dtype set and the chat's end-of-turn token among the stop tokens. With
    `default_system` a chat that does not begin with a system turn is rendered as if it began with this one.
    A shard holds at most `shard_bytes` bytes of tensors (or one larger tensor).

    The folder appears when it is complete and not before. Every rank calls this; the one with `is_writer` writes.
    UserError: `out` is not an empty place, `source` lacks what is needed, the disk is full.
    """
    source, out = Path(source), Path(out)
    tensors = [ExportTensor(*tensor) for tensor in tensors]
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"export: {out} exists and is not empty; choose another folder or remove it")
    others = small_files(source, dtype, default_system)
    if not is_writer:
        for tensor in tensors:
            tensor.fetch()
        return out
    # A sibling, since a rename is atomic within one file system only. What a killed export left is in the way.
    partial = out.parent / f".{out.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_weights(partial, tensors, dtype, shard_bytes)
        for name, content in others.items():
            (partial / name).parent.mkdir(exist_ok=True)
            storage.write_file(partial / name, [content])
        partial.rename(out)
    except OSError as error:
        raise UserError(f"export to {out}: {unwritten(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _write_weights(folder: Path, tensors: list[ExportTensor], dtype: torch.dtype, shard_bytes: int) -> None:
    shards = _shards(tensors, dtype, shard_bytes)
    total = sum(_bytes(tensor, dtype) for tensor in tensors)
    if (free := shutil.disk_usage(folder).free) < total:
        raise OSError(errno.ENOSPC, f"needs {total / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")
    width = f"{len(shards):05d}"
    names = [f"model-{i:05d}-of-{width}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [SINGLE_NAME]
    for name, shard in zip(names, shards):
        entries = [(t.name, dtype, list(t.shape), lambda t=t: _fetched(t, dtype)) for t in shard]
        storage.write_tensors(folder / name, entries)
    if len(shards) > 1:
        places = {tensor.name: name for name, shard in zip(names, shards) for tensor in shard}
        index = _json({"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))})
        storage.write_file(folder / INDEX_NAME, [index])


def _shards(tensors: list[ExportTensor], dtype: torch.dtype, limit: int) -> list[list[ExportTensor]]:
    """The tensors in their order, cut before each one that would pass the limit."""
    shards: list[list[ExportTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + _bytes(tensor, dtype) > limit:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += _bytes(tensor, dtype)
    return shards


def _bytes(tensor: ExportTensor, dtype: torch.dtype) -> int:
    return torch.Size(tensor.shape).numel() * dtype.itemsize


def _fetched(tensor: ExportTensor, dtype: torch.dtype) -> Tensor:
    value = tensor.fetch().to(dtype)
    if tuple(value.shape) != tensor.shape:
        raise ValueError(f"{tensor.name} came as {tuple(value.shape)}, but {tensor.shape} was announced")
    return value


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def small_files(source: Path, dtype: torch.dtype, default_system: str | None) -> dict[str, bytes]:
    """Name to content of everything but the weights. `UserError` where the source lacks what is needed."""
    family = read_config(source).model_type
    config = read_json(source / "config.json")
    # transformers 4 reads the first, 5 both; a file with neither is from before either.
    for key in [key for key in ("torch_dtype", "dtype") if key in config] or ["torch_dtype"]:
        config[key] = DTYPES[dtype]
    config.setdefault("model_type", family)
    config.setdefault("architectures", [ARCHITECTURES[family]])
    templates = sorted((source / "additional_chat_templates").glob("*.jinja"))
    paths = [source / name for name in COPIED] + templates
    files = {str(path.relative_to(source)): path.read_bytes() for path in paths if path.is_file()}
    if default_system is not None:
        files |= _with_default_system(source, files, default_system)
    files["generation_config.json"] = _generation_config(source, config)
    return {"config.json": _json(config)} | files


def _with_default_system(source: Path, files: dict[str, bytes], system: str) -> dict[str, bytes]:
    """The files that hold chat templates, changed. A folder may hold the template twice (transformers reads the .jinja
    file first, others tokenizer_config.json): each place is changed."""
    try:
        templates = {name: content.decode() for name, content in files.items() if name.endswith(".jinja")}
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: a chat template is not UTF-8 ({error}); mend it") from None
    changed = {name: with_default_system(text, system).encode() for name, text in templates.items()}
    settings = read_json(source / "tokenizer_config.json") if "tokenizer_config.json" in files else {}
    template = settings.get("chat_template")
    if isinstance(template, str):
        settings["chat_template"] = with_default_system(template, system)
    elif isinstance(template, list):
        # Several under names: [{"name": ..., "template": ...}].
        settings["chat_template"] = [
            entry | {"template": with_default_system(entry["template"], system)}
            for entry in template
            if isinstance(entry, dict) and isinstance(entry.get("template"), str)
        ]
    if isinstance(template, str | list) and template:
        changed["tokenizer_config.json"] = _json(settings)
    if not changed:
        raise UserError(f"{source}: no chat template to put export.default_system into; set it to none")
    return changed


def with_default_system(template: str, system: str) -> str:
    """The Jinja template that renders messages without a leading system turn as `template` renders them with this one.

    Any system turn in the messages, an empty one too, goes before the default. Nothing else of the rendering changes:
    transformers drops the newline after a block, so the old template still begins at the start of a line.
    """
    # JSON's escapes are Jinja's as well, but for characters beyond 16 bits, so those stay as they are.
    turn = f"{{'role': 'system', 'content': {json.dumps(system, ensure_ascii=False)}}}"
    return (
        "{% if not messages or messages[0]['role'] != 'system' %}"
        f"{{% set messages = [{turn}] + messages %}}"
        "{% endif %}\n" + template
    )


def _generation_config(source: Path, config: dict[str, Any]) -> bytes:
    """The source's, with the token that ends a turn among the stop tokens: a base model's often lack it, and the
    trained model would talk on past its answer."""
    path = source / "generation_config.json"
    stored = read_json(path) if path.is_file() else {}
    stops = stored.get("eos_token_id", config.get("eos_token_id"))
    stops = stops if isinstance(stops, list) else [] if stops is None else [stops]
    if any(isinstance(stop, bool) or not isinstance(stop, int) for stop in stops):
        raise UserError(f"{path}: eos_token_id = {stops}: expected a token's id, or a list of them")
    turn = _end_of_turn(source)
    if path.is_file() and (turn is None or turn in stops):
        return read_regular(path)
    # With this mark transformers 4 would make the settings anew from config.json.
    stored.pop("_from_model_config", None)
    stored["eos_token_id"] = stops if turn is None or turn in stops else [turn, *stops]
    for key in ("bos_token_id", "pad_token_id"):
        if config.get(key) is not None:
            stored.setdefault(key, config[key])
    return _json(stored)


def _end_of_turn(source: Path) -> int | None:
    """The id that ends an assistant's turn in training, None where the folder has no chat template that tells."""
    if not (source / "tokenizer.json").is_file():
        return None
    try:
        turn = ChatTokenizer.load(source).encode(
            [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
        )
    except (Refused, UserError):
        return None
    return int(turn.tokens[turn.trained.nonzero()[0][-1]])
