"""What became of the rows of a preparation: its stages and tokenised data sets, as `skytrain prep` left them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from skytrain.data.dataset import TokenDataset
from skytrain.errors import UserError
from skytrain.eval.results import result_lines
from skytrain.prep.stage import Account, beside, read_finished

LEDGER = ".ledger.json"
BEGUN = (".dropped.jsonl", ".dropped.jsonl.partial", ".answers.jsonl", ".verdicts.jsonl")
"""Ends of files that a stage has before its ledger."""
WRITING = ".unfinished"
"""End of the folder that a data set is in until it is whole."""
LARGEST = 2**53
ANEW = "make it anew with --overwrite"

Input = tuple[str, int, str]
"""Name, bytes and sha256 of a file that was read."""


@dataclass(frozen=True)
class Tokens:
    """Of a tokenised data set, all but `documents` in tokens. limit: that its documents were held to."""

    documents: int
    trained: int
    context: int
    longest: int
    limit: int


@dataclass(frozen=True)
class Made:
    """What a stage has made, or is to make. name: of the stage; file: of its rows, or the data set's folder. inputs:
    none where they are not known. sha256: of the rows; "" for a data set. account: None for an unfinished stage.

    verdicts: (correct, all) of the rows that got a verdict; None for a stage that gives none.
    """

    name: str
    file: str
    inputs: list[Input]
    sha256: str = ""
    account: Account | None = None
    verdicts: tuple[int, int] | None = None
    tokens: Tokens | None = None


@dataclass(frozen=True)
class Prepared:
    """stages: each behind those that it has read."""

    name: str
    stages: list[Made]


class _Verdict(msgspec.Struct):
    """Of a graded row."""

    verdict: str


def is_preparation(folder: Path) -> bool:
    return bool(_stage_names(folder) or _data_set_names(folder))


def read(name: str, folder: Path) -> Prepared:
    """Raises `UserError` for a file that cannot be read, and for one that holds other than its account says."""
    found: dict[str, Made] = {}
    for one in _stage_names(folder):
        made = _stage(folder, one)
        found[made.file] = made
    # After them: a data set's own numbers take the place of those that a recipe puts beside it.
    for one in _data_set_names(folder):
        found[one] = _data_set(folder / one)
    return Prepared(name, _in_order(found))


def _stage_names(folder: Path) -> list[str]:
    ends = (LEDGER, *BEGUN)
    files = [path.name for path in folder.iterdir() if path.name.endswith(ends)]
    return sorted({name.removesuffix(next(end for end in ends if name.endswith(end))) for name in files})


def _data_set_names(folder: Path) -> list[str]:
    """Of the finished ones, and of those that are written."""
    folders = [path for path in folder.iterdir() if path.is_dir()]
    finished = {path.name for path in folders if (path / "dataset.json").exists()}
    written = {path.name.removesuffix(WRITING) for path in folders if path.name.endswith(WRITING)}
    return sorted(finished | written)


def _stage(folder: Path, name: str) -> Made:
    for out in (folder / f"{name}.jsonl", folder / name):
        done = read_finished(out)
        if done is None:
            continue
        if done.account.stage == "tokenize":
            return Made(name, name, done.inputs)
        _check(beside(out, "ledger.json"), done.account)
        verdicts = _verdicts(out, done.account) if done.account.stage == "grade" else None
        return Made(name, out.name, done.inputs, done.rows_sha256, done.account, verdicts)
    return Made(name, f"{name}.jsonl", [])


def _check(path: Path, account: Account) -> None:
    counts = (account.read, account.kept, account.samples, *account.dropped.values())
    problem = "a count that is none" if max(map(abs, counts)) > LARGEST else account.problem()
    if problem is not None:
        raise UserError(f"{path}: does not add up ({problem}); {ANEW}")


def _verdicts(out: Path, account: Account) -> tuple[int, int]:
    """Not all that is kept is correct: rows without a gold answer may be, and those that a weaker check decides."""
    kept = correct = 0
    for row in result_lines(out, _Verdict, ANEW):
        kept += 1
        correct += row.verdict == "correct"
    if kept != account.kept:
        raise UserError(f"{out}: holds {kept:,} rows, and its ledger tells of {account.kept:,}; {ANEW}")
    without = account.dropped.get("malformed", 0) + int(account.notes.get("ungraded", 0))
    return correct, account.read - without


def _data_set(folder: Path) -> Made:
    """What it has read is told by the ledger that a recipe puts beside it, if that is of the same data set."""
    if not (folder / "dataset.json").exists():
        return Made(folder.name, folder.name, [])
    data = TokenDataset.open(folder)
    info, rows = data.info, data.info.ledger.rows
    account = Account("tokenize", rows.read, rows.kept, rows.dropped)
    _check(folder / "dataset.json", account)
    context = info.n_tokens - info.n_trained
    tokens = Tokens(info.n_docs, info.n_trained, context, int(data.lengths.max()), info.max_length)
    done = read_finished(folder)
    inputs = done.inputs if done is not None and done.account == account else []
    return Made(folder.name, folder.name, inputs, account=account, tokens=tokens)


def _in_order(found: dict[str, Made]) -> list[Made]:
    """A stage behind those that it has read, and at once behind them where it can be. found: by file."""
    sources = {
        file: [name for name, _, _ in made.inputs if name in found and name != file] for file, made in found.items()
    }
    read = {(name, sha256) for made in found.values() for name, _, sha256 in made.inputs}
    ordered: list[Made] = []
    seen: set[str] = set()

    def visit(file: str) -> None:
        # A file from elsewhere may have the name of a later stage's: what looks like a circle ends here.
        if file not in seen:
            seen.add(file)
            for source in sources[file]:
                visit(source)
            ordered.append(found[file])

    def place(file: str) -> tuple[bool, bool, str]:
        return (file, found[file].sha256) in read, not sources[file], file

    # From those that no other has read; the ones apart from all others come last.
    for file in sorted(found, key=place):
        visit(file)
    return ordered
