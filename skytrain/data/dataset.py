"""The tokenised data set on disk: a writer with bounded memory, and a reader that maps the shards."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
from array import array
from bisect import bisect_right
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from skytrain.data.format import ARRAYS, FORMAT_VERSION, DatasetInfo, Shard, file_sha256, shard_header, shard_name
from skytrain.data.ledger import Ledger
from skytrain.errors import UserError
from skytrain.files import open_regular, read_regular, unique_keys
from skytrain.locks import lock

SHARD_BYTES = 256 << 20
REMEDY = "prepare the data set again with skytrain prep tokenize"
# json.dumps with a default builds an encoder each time.
_encode_row = json.JSONEncoder(default=str, allow_nan=False).encode


class DatasetWriter:
    """Writes documents into `<folder>.unfinished` and renames it at `finish`; a context manager.

    Tokens go to disk as they come; memory holds 16 bytes a document of the open shard. Left without `finish`
    (an exception, Ctrl-C), it removes what it wrote. Raises `UserError` where `folder` is in use: another process
    writes it, a finished data set is replaced only with `overwrite`, and any other non-empty folder never.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        tokenizer_sha256: str,
        chat_template_sha256: str,
        max_length: int,
        overwrite: bool = False,
        shard_bytes: int = SHARD_BYTES,
    ):
        self.folder = Path(folder).absolute()
        self._overwrite = overwrite
        _check_target(self.folder, overwrite)
        self._identity = {"tokenizer_sha256": tokenizer_sha256, "chat_template_sha256": chat_template_sha256}
        self._max_length = max_length
        self._shard_tokens = max(1, shard_bytes // 4)
        self._work = self.folder.with_name(self.folder.name + ".unfinished")
        self._lock = _claim(self._work, self.folder)
        self._rows = open(self._work / "rows.jsonl", "w", encoding="ascii", newline="\n")  # noqa: SIM115
        self._shards: list[Shard] = []
        self._ledger = Ledger()
        self._n_docs = self._n_trained = self._n_tokens = self._max_token_id = 0
        self._open_shard()

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.abort()

    def add(self, tokens: np.ndarray, trained: np.ndarray, row: dict[str, Any]) -> None:
        """One document. tokens: uint32 [n]; trained: uint8 [n] of 0 and 1; row: what rows.jsonl says of it."""
        n = len(tokens)
        if n == 0 or len(trained) != n or n > self._max_length:
            raise ValueError(f"document of {n} tokens and {len(trained)} marks, limit {self._max_length}")
        if trained[0] or trained.max() > 1:
            raise ValueError("marks are 0 or 1, and the first token of a document is never a target")
        self._tokens.write(np.ascontiguousarray(tokens, dtype="<u4").data)
        self._trained.write(np.ascontiguousarray(trained, dtype=np.uint8).data)
        self._offsets.append(self._offsets[-1] + n)
        self._doc_ids.append(self._n_docs)
        self._rows.write(_row_text(row) + "\n")
        n_trained = int(np.count_nonzero(trained))
        self._n_docs += 1
        self._n_tokens += n
        self._n_trained += n_trained
        self._max_token_id = max(self._max_token_id, int(tokens.max()))
        self._ledger.read(1, n)
        self._ledger.keep(n_trained, n - n_trained)
        if self._offsets[-1] >= self._shard_tokens:
            self._close_shard()
            self._open_shard()

    def finish(self, ledger: Ledger | None = None, system: str | None = None) -> DatasetInfo:
        """Closes, renames and only then shows the folder. `ledger`: the stage's; None if every row read was kept.

        Raises `UserError` when nothing was added, ValueError when the ledger does not add up to the documents.
        """
        if self._n_docs == 0:
            raise UserError(
                f"{self.folder}: no row was kept, so no data set was written; the ledger says what dropped them"
            )
        ledger = ledger or self._ledger
        problem = ledger.problem()
        kept = (ledger.rows.kept, ledger.tokens.trained, ledger.tokens.context)
        if problem or kept != (self._n_docs, self._n_trained, self._n_tokens - self._n_trained):
            raise ValueError(f"the ledger does not describe the {self._n_docs} documents: {problem or kept}")
        if len(self._offsets) > 1:
            self._close_shard()
        self._discard_open_files()
        self._rows.close()
        for index, shard in enumerate(self._shards):
            name = shard_name(index, len(self._shards))
            os.rename(self._work / shard.file, self._work / name)
            self._shards[index] = msgspec.structs.replace(shard, file=name)
        info = DatasetInfo(
            format_version=FORMAT_VERSION,
            max_token_id=self._max_token_id,
            max_length=self._max_length,
            n_docs=self._n_docs,
            n_tokens=self._n_tokens,
            n_trained=self._n_trained,
            system=system,
            ledger=ledger,
            shards=self._shards,
            rows_sha256=file_sha256(self._work / "rows.jsonl"),
            **self._identity,
        )
        self._publish(msgspec.json.format(msgspec.json.encode(info), indent=2))
        return info

    def abort(self) -> None:
        """Removes the unfinished folder; nothing after `finish`."""
        if self._lock is not None:
            self._discard_open_files()
            self._rows.close()
            shutil.rmtree(self._work, ignore_errors=True)
            self._release()

    def _release(self) -> None:
        os.close(self._lock)
        self._lock = None

    def _publish(self, info: bytes) -> None:
        _check_target(self.folder, self._overwrite)  # Somebody may have put something there since.
        temporary = self._work / "dataset.json.part"
        temporary.write_bytes(info)
        os.rename(temporary, self._work / "dataset.json")
        for path in self._work.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        if (self.folder / "dataset.json").exists():
            old = self.folder.with_name(self.folder.name + ".replaced")
            shutil.rmtree(old, ignore_errors=True)
            os.rename(self.folder, old)
            os.rename(self._work, self.folder)
            shutil.rmtree(old)
        else:
            os.rename(self._work, self.folder)
        self._release()

    # A safetensors header comes first and holds the sizes, so a shard's two long arrays are spilled to files of their
    # own and put behind the header when the shard is full.
    def _open_shard(self) -> None:
        self._tokens = open(self._work / "tokens.part", "w+b")  # noqa: SIM115
        self._trained = open(self._work / "trained.part", "w+b")  # noqa: SIM115
        self._offsets = array("q", [0])
        self._doc_ids = array("q")

    def _close_shard(self) -> None:
        n_docs, n_tokens = len(self._doc_ids), self._offsets[-1]
        path = self._work / f"shard-{len(self._shards)}.part"
        with open(path, "wb") as file:
            file.write(shard_header(n_docs, n_tokens))
            file.write(self._offsets.tobytes())
            file.write(self._doc_ids.tobytes())
            for spilled in (self._tokens, self._trained):
                spilled.seek(0)
                shutil.copyfileobj(spilled, file, 1 << 20)
        self._shards.append(Shard(path.name, n_docs, n_tokens, file_sha256(path)))
        self._discard_open_files()

    def _discard_open_files(self) -> None:
        for file in (self._tokens, self._trained):
            file.close()
            Path(file.name).unlink(missing_ok=True)


def _claim(work: Path, folder: Path) -> int:
    """Makes the folder of unfinished work, emptied of what a killed run left, and takes it for this process."""
    work.mkdir(parents=True, exist_ok=True)
    held = lock(work)
    if held is None:
        raise UserError(f"{folder}: another process is writing it; wait for its end, or give another folder")
    for left in work.iterdir():
        left.unlink()
    return held


def _check_target(folder: Path, overwrite: bool) -> None:
    if folder.is_dir():
        if (folder / "dataset.json").exists():
            if not overwrite:
                raise UserError(f"{folder}: holds a finished data set; give another folder, or --overwrite")
        elif any(folder.iterdir()):
            raise UserError(f"{folder}: holds files that are no data set; give a new or empty folder")
    elif folder.exists():
        raise UserError(f"{folder}: is a file; give a new or empty folder")


class _MappedShard:
    """The four arrays of one shard, as read-only views of the mapped file. Raises `UserError` naming the file."""

    def __init__(self, path: Path, shard: Shard):
        try:
            with open_regular(path) as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise UserError(f"{path}: this shard is missing; {REMEDY}") from None
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise UserError(f"{path}: this shard cannot be read ({error}); {REMEDY}") from None
        # Ours alone are read: the header must be, byte for byte, the one that is written for these counts.
        header = shard_header(shard.n_docs, shard.n_tokens)
        if mapped[: len(header)] != header:
            raise UserError(f"{path}: this shard is corrupt (its header does not fit dataset.json); {REMEDY}")
        size = len(header) + (2 * shard.n_docs + 1) * 8 + shard.n_tokens * 5
        if len(mapped) != size:
            raise UserError(f"{path}: this shard is truncated or corrupt ({len(mapped)} bytes, not {size}); {REMEDY}")
        at, arrays = len(header), {}
        for name, count in zip(ARRAYS, (shard.n_docs + 1, shard.n_docs, shard.n_tokens, shard.n_tokens), strict=True):
            arrays[name] = np.frombuffer(mapped, ARRAYS[name][1], count, at)
            at += arrays[name].nbytes
        self.offsets, self.doc_id = arrays["offsets"], arrays["doc_id"]
        self.tokens, self.trained = arrays["tokens"], arrays["trained"]
        self.path = path
        self.lengths = np.diff(self.offsets)
        if self.offsets[0] != 0 or self.offsets[-1] != shard.n_tokens or (self.lengths <= 0).any():
            raise UserError(f"{path}: this shard is corrupt (its offsets do not rise to its tokens); {REMEDY}")


class TokenDataset:
    """A finished folder, mapped. Indices of documents run over all shards in order."""

    def __init__(self, folder: Path, info: DatasetInfo, shards: list[_MappedShard]):
        self.folder = folder
        self.info = info
        self._shards = shards
        self._starts = list(accumulate((len(shard.doc_id) for shard in shards), initial=0))
        self.lengths: np.ndarray = np.concatenate([shard.lengths for shard in shards])
        """int64 [n_docs], in tokens."""

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = False) -> TokenDataset:
        """Maps the shards and checks headers, sizes, offsets and counts; `verify` also reads every byte.

        Raises `UserError`, naming the file, for a folder that is missing, unfinished, empty, cut short or corrupt.
        """
        folder = Path(folder)
        info = read_info(folder)
        shards = [_MappedShard(folder / shard.file, shard) for shard in info.shards]
        dataset = cls(folder, info, shards)
        if dataset.lengths.max() > info.max_length:
            raise UserError(
                f"{folder}: holds a document of {dataset.lengths.max()} tokens, and dataset.json says none is "
                f"longer than {info.max_length}; {REMEDY}"
            )
        for shard in shards:
            if shard.doc_id.min() < 0 or shard.doc_id.max() >= info.n_docs:
                raise UserError(f"{shard.path}: this shard is corrupt (a doc_id beyond rows.jsonl); {REMEDY}")
        if not (folder / "rows.jsonl").is_file():
            raise UserError(f"{folder / 'rows.jsonl'}: missing; {REMEDY}")
        if verify:
            dataset._verify()
        return dataset

    def __len__(self) -> int:
        return self.info.n_docs

    @cached_property
    def sha256(self) -> str:
        """Of the shards: the same for the same documents and targets in the same order."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.info.shards).encode()).hexdigest()

    @cached_property
    def trained_counts(self) -> np.ndarray:
        """int64 [n_docs]: targets of each document. Reads all marks once (1 byte a token)."""
        # np.add.reduceat would first copy the whole shard as int64, 8 bytes a token.
        spans = ((shard.trained.view(bool), pairwise(shard.offsets.tolist())) for shard in self._shards)
        each = (np.count_nonzero(marks[start:end]) for marks, ends in spans for start, end in ends)
        counts = np.fromiter(each, np.int64, len(self))
        if counts.sum() != self.info.n_trained:
            raise UserError(
                f"{self.folder}: the shards hold {counts.sum()} trained tokens and dataset.json says "
                f"{self.info.n_trained}; {REMEDY}"
            )
        return counts

    def document(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens uint32 [n], trained uint8 [n]): read-only views of the mapped file."""
        shard, local = self._locate(index)
        part = slice(shard.offsets[local], shard.offsets[local + 1])
        return shard.tokens[part], shard.trained[part]

    def doc_id(self, index: int) -> int:
        shard, local = self._locate(index)
        return int(shard.doc_id[local])

    def row(self, index: int) -> dict[str, Any]:
        """What rows.jsonl says of a document: id, source file and line, provenance."""
        doc_id = self.doc_id(index)
        start, end = self._row_offsets[doc_id : doc_id + 2]
        with open_regular(self.folder / "rows.jsonl") as file:
            file.seek(start)
            return json.loads(file.read(end - start))

    def _locate(self, index: int) -> tuple[_MappedShard, int]:
        if not 0 <= index < self.info.n_docs:
            raise IndexError(f"document {index} of {self.info.n_docs}")
        shard = bisect_right(self._starts, index) - 1
        return self._shards[shard], index - self._starts[shard]

    @cached_property
    def _row_offsets(self) -> np.ndarray:
        """int64 [n_docs + 1]: where each line of rows.jsonl begins, in bytes."""
        path = self.folder / "rows.jsonl"
        with open_regular(path) as file:
            offsets = np.fromiter(accumulate(map(len, file), initial=0), np.int64)
        if len(offsets) != self.info.n_docs + 1:
            raise UserError(f"{path}: {len(offsets) - 1} lines for {self.info.n_docs} documents; {REMEDY}")
        return offsets

    def _verify(self) -> None:
        info, top = self.info, 0
        for shard, mapped in zip(info.shards, self._shards, strict=True):
            if file_sha256(mapped.path) != shard.sha256:
                raise UserError(f"{mapped.path}: this shard is corrupt (its sha256 differs); {REMEDY}")
            if mapped.trained.max() > 1 or mapped.trained[mapped.offsets[:-1]].any():
                raise UserError(f"{mapped.path}: this shard is corrupt (impossible marks of targets); {REMEDY}")
            top = max(top, int(mapped.tokens.max()))
        doc_ids = np.concatenate([mapped.doc_id for mapped in self._shards])
        if len(np.unique(doc_ids)) != info.n_docs or len(self._row_offsets) != info.n_docs + 1:
            raise UserError(f"{self.folder}: documents and rows.jsonl do not match; {REMEDY}")
        if file_sha256(self.folder / "rows.jsonl") != info.rows_sha256:
            raise UserError(f"{self.folder / 'rows.jsonl'}: corrupt (its sha256 differs); {REMEDY}")
        if top != info.max_token_id or self.trained_counts.sum() != info.n_trained:
            raise UserError(f"{self.folder / 'dataset.json'}: its numbers are not those of the shards; {REMEDY}")


def _row_text(row: dict[str, Any]) -> str:
    try:
        return _encode_row(row)
    except ValueError:  # JSON has no NaN and no infinity, but Python's readers and Parquet do
        # There and back, since a function of ours could not go down as far as the encoder does.
        return _encode_row(json.loads(json.dumps(row, default=str), parse_constant=lambda constant: None))


def read_info(folder: Path) -> DatasetInfo:
    path = folder / "dataset.json"
    if not folder.is_dir():
        what = "a file, and no data set" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {what}; make one: skytrain prep tokenize CHATS.jsonl --model MODEL --out FOLDER")
    try:
        raw = read_regular(path)
    except FileNotFoundError:
        raise UserError(f"{path}: missing, so this is no data set, or an unfinished one; {REMEDY}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); {REMEDY}") from None
    try:
        found = json.loads(raw, object_pairs_hook=unique_keys)
        version = found["format_version"]
        if version != FORMAT_VERSION:
            raise UserError(f"{path}: format version {version}, and this skytrain reads {FORMAT_VERSION}; {REMEDY}")
        info = msgspec.json.decode(raw, type=DatasetInfo)
    except (msgspec.DecodeError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a data set's description ({error}); {REMEDY}") from None
    if info.n_docs == 0:
        raise UserError(f"{folder}: an empty data set (0 documents); {REMEDY}")
    names = [shard_name(index, len(info.shards)) for index in range(len(info.shards))]
    counts = [(shard.n_docs, shard.n_tokens) for shard in info.shards]
    if [shard.file for shard in info.shards] != names or any(d < 1 or t < d for d, t in counts):
        raise UserError(f"{path}: its list of shards is not one that was written; {REMEDY}")
    if (info.n_docs, info.n_tokens) != tuple(map(sum, zip(*counts, strict=True))):
        raise UserError(f"{path}: its counts and those of its shards differ; {REMEDY}")
    kept = info.ledger.rows.kept, info.ledger.tokens.trained, info.ledger.tokens.trained + info.ledger.tokens.context
    problem = info.ledger.problem()
    if problem or kept != (info.n_docs, info.n_trained, info.n_tokens):
        raise UserError(f"{path}: its ledger does not add up ({problem or kept}); {REMEDY}")
    return info
