"""CODE.md, the map: every file of the rooms is on it once, and nothing that is not there."""

import re
from collections import Counter
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
ROOMS = ("skytrain", "kernels", "csrc", "launch", "bench")
BUILT = {".so", ".pyc"}
ENTRY = re.compile(r"^\| \[([^\]]+)\]\(([^)]+)\) \| \S.* \|$", re.MULTILINE)

ENTRIES = ENTRY.findall((ROOT / "CODE.md").read_text(encoding="utf-8"))
PATHS = [path for _, path in ENTRIES]


def test_every_file_is_named_once():
    """By itself, or by a folder of texts or results that stands for all that is in it."""
    folders = [PurePosixPath(path) for path in PATHS if path.endswith("/")]
    named = Counter(PATHS)
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*") if path.is_file() and path.suffix not in BUILT]
    for file in (path.relative_to(ROOT) for path in files):
        times = named[file.as_posix()] + sum(folder in PurePosixPath(file).parents for folder in folders)
        assert times == 1, f"{file}: named {times} times in CODE.md"
    assert len(files) > 200


def test_every_folder_of_tests_is_named():
    folders = {f"{path.relative_to(ROOT)}/" for path in (ROOT / "tests").iterdir() if any(path.glob("[!.]*.*"))}
    assert folders <= set(PATHS), folders - set(PATHS)


def test_every_entry_is_there():
    assert len(PATHS) == len(set(PATHS))
    for text, path in ENTRIES:
        there = ROOT / path
        assert there.is_dir() if path.endswith("/") else there.is_file(), f"CODE.md names {path}, which is not there"
        assert path.endswith(text), f"CODE.md: {text} leads to {path}"
    rows = [line for line in (ROOT / "CODE.md").read_text(encoding="utf-8").splitlines() if line.startswith("| [")]
    assert len(rows) == len(ENTRIES), "a line of the map that no test reads"
