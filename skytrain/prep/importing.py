"""`skytrain prep import`: published data sets, in the forms that they are published in, to problems."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from pathlib import Path
from typing import Any

from skytrain.errors import UserError
from skytrain.help import HelpFormatter
from skytrain.prep import hub
from skytrain.prep.formats import FORMS, fields_told, told_by
from skytrain.prep.problems import DOMAINS, Malformed, check_problem
from skytrain.prep.rows import Unreadable, read_rows
from skytrain.prep.stage import Account, Row, Stage, add_stage_arguments, guarded, run_stage
from skytrain.prep.tests_folder import Pairs, TestsFolder

MAPPED = ("id", "source", "domain", "difficulty", "prompt", "gold", "tests", "starter", "solution", "choices", "level")
_PLACE = re.compile(r"(?s)(.*?)(?: row (\d+)|:(\d+)(?: \(element (\d+)\))?)")


class Unfit(Exception):
    """A row that reads well and is of no use."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def import_problems(
    inputs: list[str | Path],
    out: str | Path,
    *,
    form: str = "auto",
    source: str | None = None,
    domain: str | None = None,
    fields: dict[str, str] | None = None,
    on_error: str = "error",
    overwrite: bool = False,
) -> Account:
    """Reads inputs of one form and writes problems; tests of more than 64 KiB a row go to files in OUT's `.tests`.

    form: a key of FORMS, or "auto". source, domain: put in the place of what the rows say. fields: for a key of
    MAPPED, the field (a dot goes into an object) that holds it, which makes the form plain unless one is given.

    Raises `UserError` for inputs of an unknown form or of two, and for fields that no row has.
    """
    fields = dict(fields or {})
    stage = Stage("import", inputs, out, {}, on_error=on_error)
    form = _form(stage.inputs, form, fields)
    stage.settings = {"form": form, "source": source, "domain": domain, "fields": fields}
    folder = TestsFolder(stage.out)
    importer = _Importer(form, source, domain, fields, folder)
    try:
        return run_stage(stage, importer.work, overwrite=overwrite)
    except BaseException:
        folder.undo()
        raise


def _form(paths: list[Path], asked: str, fields: dict[str, str]) -> str:
    """The form of all files. Looks at the first row of each."""
    first = {path: row for path in paths if (row := _first_row(path)) is not None}
    for path, row in first.items():
        for key, field in fields.items():
            if key not in MAPPED:
                raise UserError(f"--map {key}={field}: {key!r} is not one of {', '.join(MAPPED)}")
            if _field(row, field) is None and field not in row:
                raise UserError(f"{path}: its first row has no field {field!r} for --map, but {', '.join(row)[:300]}")
    if asked != "auto" or fields:
        return "plain" if asked == "auto" else asked
    told = {path: _told(path, row) for path, row in first.items()}
    if len({*told.values()}) > 1:
        parts = ", ".join(f"{path.name} is {form}" for path, form in told.items())
        raise UserError(f"the inputs are of several forms ({parts}); import each by itself")
    if not told:
        raise UserError(f"{paths[0]}: has no row that tells its form; name one with --format")
    form = next(iter(told.values()))
    print(f"form: {form} (told by the fields of the first row; --format names another)", flush=True)
    return form


def _told(path: Path, row: Row) -> str:
    forms = told_by(row)
    if len(forms) == 1:
        return forms[0]
    fields = ", ".join(map(str, row))[:300]
    what = f"are those of {' and '.join(forms)}" if forms else "tell none of the forms"
    raise UserError(
        f"{path}: its fields ({fields}) {what}; name one with --format, or fields with --map: {fields_told()}"
    )


def _first_row(path: Path) -> Row | None:
    for raw in read_rows(path):
        try:
            row = raw.parse()
        except Unreadable:
            continue
        if isinstance(row, dict):
            return row
    return None


def _field(row: Row, name: str) -> Any:
    """The value of a field; a dot in its name goes into an object. None where there is none."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


class _Importer:
    def __init__(self, form: str, source: str | None, domain: str | None, fields: dict[str, str], folder: TestsFolder):
        self._form, self._source, self._domain, self._fields, self._folder = form, source, domain, fields, folder
        self._ids: set[str] = set()
        self._rows_of: Counter[str] = Counter()

    def work(self, stage: Stage) -> None:
        for where, row in stage.rows():
            try:
                found = self._problem(row, where)
                published, found["id"] = found["id"], unique(found["id"], self._ids)
                stage.keep(found)
            except Unfit as unfit:
                stage.drop(row, unfit.reason, unfit.detail, where)
            # ValueError and TypeError: values that cannot be written, as NaN within a text that holds JSON.
            except (ValueError, TypeError, RecursionError) as error:
                stage.drop(row, "malformed", str(error) or type(error).__name__, where)
            else:
                self._ids.add(found["id"])
                if found["id"] != published:
                    stage.notes["ids made unique"] = stage.notes.get("ids made unique", 0) + 1

    def _problem(self, row: Row, where: str) -> Row:
        # Counted before anything is dropped: "the first 20,000 rows" of a source are those of the published file.
        form, row = FORMS[self._form], self._mapped(row)
        pool = str(form.pool(row))
        self._rows_of[pool] += 1
        found = form.read(row)
        file, line, number = _place(where)
        place = {"file": file, "line": line, "row_of_source": self._rows_of[pool]}
        found["provenance"] = place | found["provenance"]
        found["id"] = id_of(found["id"], f"{file}:{number}")
        found["source"] = self._source or found["source"]
        found["domain"] = self._domain or found["domain"]
        return complete(found, self._folder)

    def _mapped(self, row: Row) -> Row:
        """The row with its fields under the names that --map gives them."""
        values = {key: _field(row, field) for key, field in self._fields.items()}
        return {key: value for key, value in row.items() if key not in self._fields.values()} | values


def complete(found: Row, folder: TestsFolder) -> Row:
    """A checked problem of what a form read, with its tests in their place. Raises `Malformed`, and `Unfit` for one
    without an answer or tests."""
    if found["domain"] == "code":
        check_problem({**found, "tests": None})
        return _with_tests(found, folder)
    check_problem(found)
    return _with_gold(found)


def _with_tests(found: Row, folder: TestsFolder) -> Row:
    tests = found["tests"]
    if isinstance(tests, Pairs):
        tests = folder.place(tests)
    found = {**found, "tests": tests or None, "gold": None}
    check_problem(found)
    if not tests or tests.get("inputs") == []:
        raise Unfit("no_tests", "a program without tests")
    if "file" in tests and not Path(tests["file"]).is_file():
        raise Malformed(f"'tests' are in {tests['file'][:200]!r}, which is no file")
    return found


def unique(published: str, taken: set[str]) -> str:
    """The id, or where it is taken the id with a number behind it."""
    found, copy = published, 2
    while found in taken:
        found = f"{published}#{copy}"
        copy += 1
    return found


def id_of(published: Any, place: str) -> str:
    if published is None or published == "":
        return place
    if isinstance(published, bool) or not isinstance(published, str | int):
        raise Malformed(f"'id' must be text or a whole number, not {type(published).__name__}")
    return str(published)


def _with_gold(found: Row) -> Row:
    gold = (found["gold"] or "").strip()
    if not gold:
        raise Unfit("no_answer", "no gold answer, and no box in the solution")
    if found["domain"] == "choice":
        gold = gold.strip("(). ").upper()
        if not re.fullmatch("[A-Z]", gold):
            raise Malformed(f"'gold' of a choice must be one letter, not {gold[:40]!r}")
    return {**found, "gold": gold}


def _place(where: str) -> tuple[str, int, int]:
    """(file's name, line, number): the number is that of the element in a JSON array, of the row in Parquet."""
    path, row, line, element = _PLACE.fullmatch(where).groups()
    return Path(path).name, int(line or row), int(element or line or row)


def register(subparsers: Any) -> None:
    """Adds `import` to the parsers of `skytrain prep`."""
    parser = subparsers.add_parser(
        "import",
        help="published data sets to problems",
        description="Reads published data sets, or problems of your own, and writes problems in one form. Which form "
        "the inputs have is told by the fields of the first row. Plain rows have prompt, problem or question, and "
        "gold, answer, a solution with a box, or tests; they may have id, source, domain, difficulty, starter and "
        "choices. A row that can be read and is no problem is dropped as malformed; --on-error is for those that "
        "cannot be read.",
        epilog="Example:\n  skytrain prep import numina/*.parquet --out data/problems.jsonl",
        formatter_class=HelpFormatter,
    )
    add_stage_arguments(parser, nargs="*")
    parser.add_argument("--format", choices=("auto", *FORMS), default="auto", help="form of all inputs")
    parser.add_argument("--source", metavar="NAME", help="source of all rows (default: as the form has it)")
    parser.add_argument("--domain", choices=DOMAINS, help="domain of all rows (default: as the form has it)")
    parser.add_argument(
        "--map",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=FIELD",
        help=f"the field of a row that holds a problem's KEY, one of {', '.join(MAPPED)}",
    )
    parser.add_argument(
        "--hub",
        metavar="NAME[:CONFIG[:SPLIT]]",
        help="in the place of INPUT: a data set of the Hugging Face hub (needs the library `datasets`)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if bool(args.inputs) == bool(args.hub):
        raise UserError("import: name either INPUT files or --hub NAME")
    fields = {}
    for word in args.map:
        key, equals, field = word.partition("=")
        if not equals or not field:
            raise UserError(f"--map {word}: must be KEY=FIELD, as prompt=my_field")
        fields[key] = field

    def work() -> None:
        inputs = [hub.fetch(args.hub, Path(args.out), overwrite=args.overwrite)] if args.hub else args.inputs
        import_problems(
            inputs,
            args.out,
            form=args.format,
            source=args.source,
            domain=args.domain,
            fields=fields,
            on_error=args.on_error,
            overwrite=args.overwrite,
        )

    return guarded(work, args.out)
