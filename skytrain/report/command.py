"""`skytrain report RUN [RUN...]`: training runs, evaluations and the preparation of data on one page."""

from __future__ import annotations

import argparse
from pathlib import Path

from skytrain.errors import UserError
from skytrain.files import open_regular
from skytrain.help import HelpFormatter


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "report",
        help="put training runs, evaluations and prepared data on one page",
        description="Writes one HTML file that needs no network, and a Markdown file beside it: scores beside the "
        "published ones, models compared on the same problems, what each stage of data made of its rows, curves of "
        "training runs, planned against measured, and every sample with its verdict. Prints the table of scores.",
        epilog="Example:\n  skytrain report runs/mine runs/eval-before runs/eval-after data/mine --out mine.html",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        type=Path,
        help="folder of a training run, an evaluation, or a preparation (`folder` in a recipe of skytrain prep run)",
    )
    parser.add_argument(
        "--out", metavar="FILE.html", type=Path, default=Path("report.html"), help="page to write, FILE.md beside it"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files of these names that are no reports of this command"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """UserError for a folder that cannot be reported on, and for an --out that cannot be written. Exit status."""
    from skytrain.prep.stage import guarded

    return guarded(lambda: _write(arguments.runs, arguments.out, arguments.overwrite), arguments.out)


def _write(folders: list[Path], out: Path, overwrite: bool) -> None:
    # Not at the top: the other commands need none of it.
    from skytrain.prep.stage import write_atomically
    from skytrain.report import markdown, page, runs, samples, tables

    if out.suffix != ".html":
        raise UserError(f"--out {out}: must end in .html; the Markdown is written beside it")
    beside = out.with_suffix(".md")
    for path in (out, beside):
        _check_free(path, overwrite)
    training, evaluated, prepared = runs.read(folders)
    counts = samples.count(evaluated)
    compared = tables.comparisons(evaluated, counts)
    page.write(out, training, evaluated, prepared, counts, compared)
    text = f"<!-- {page.MARK} -->\n" + markdown.report(training, evaluated, prepared, counts, compared)
    write_atomically(beside, text.encode())
    if evaluated:
        print(markdown.scores(evaluated, counts))
    print(f"written: {out}, {beside}")


def _check_free(path: Path, overwrite: bool) -> None:
    from skytrain.report.page import MARK

    if not path.parent.is_dir():
        raise UserError(f"--out {path}: no folder {path.parent}; make it")
    try:
        with open_regular(path) as file:
            ours = MARK.encode() in file.readline(200)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"--out {path}: {error.strerror or error}; give another name") from None
    if not ours and not overwrite:
        raise UserError(f"--out {path}: is there, and no report of this command; give another name, or --overwrite")
