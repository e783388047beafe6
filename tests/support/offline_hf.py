"""`hf download` with a folder in the hub's place: python offline_hf.py HUB download REPO [FILE ...] --local-dir DIR

All but the fetching is the program's own. HUB/REPO holds a repository's files. A file or a pattern that it has nothing
of is an error, and so is a word that hf would leave out with a warning.
"""

from __future__ import annotations

import fnmatch
import shutil
import sys
import warnings
from pathlib import Path

from huggingface_hub.cli import download
from huggingface_hub.cli.hf import app

HUB = Path(sys.argv[1])


def snapshot(repo_id: str, local_dir: str, allow_patterns: list[str] | None = None, **_: object) -> str:
    repository = HUB / repo_id
    names = [str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file()]
    if not names:
        sys.exit(f"{repo_id}: the hub of the test has no such repository")
    for pattern in allow_patterns or ["*"]:
        chosen = fnmatch.filter(names, pattern)
        if not chosen:
            sys.exit(f"{repo_id}: has no file {pattern}, but {', '.join(sorted(names))}")
        for name in chosen:
            (Path(local_dir) / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(repository / name, Path(local_dir) / name)
    return local_dir


def one(filename: str, **rest: object) -> str:
    return snapshot(allow_patterns=[filename], **rest)


warnings.simplefilter("error")
download.snapshot_download, download.hf_hub_download = snapshot, one
app(sys.argv[2:])
