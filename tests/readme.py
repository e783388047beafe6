"""Runs every command of the pages for people in a short form: python tests/readme.py [--only PAGE] [--keep]

Each page has a folder that looks like a clone, with what the page supposes: models, data sets and a server, all tiny.
Its commands run there one after another, as tests/support/short_forms.py shortens them; so do recipes that the pages
hold. Links must lead to files, and imports must import. Exit status 1 where something fails, or has no short form; 2
where port 8000, which the pages' servers have, is taken.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "tests" / "support"), str(ROOT / "bench")]

import evaluations  # noqa: E402
import pages  # noqa: E402
import short_forms  # noqa: E402
import small_hub  # noqa: E402
from teacher import Teacher  # noqa: E402

PAGES = (
    "README.md", "CODE.md", "skytrain/prep/README.md", "skytrain/eval/README.md", "launch/README.md",
    "launch/multi_node.md", "bench/README.md",
)  # fmt: skip
FETCHES_ALL = ("launch/README.md",)
"""Pages that suppose no model and no data set."""
TOKENIZED = "skytrain prep tokenize Sky-T1_data_17k.json --model models/Qwen2.5-32B-Instruct --out data/sky_t1_17k"
PORT = 8000
LONGEST = 600
"""Seconds of a command."""


class Tester:
    """tmp: holds a folder a page."""

    def __init__(self, tmp: Path):
        self.tmp, self.hub = tmp, tmp / "hub"
        self.failed: list[str] = []
        self.counts = {"run": 0, "words": 0}
        book = small_hub.write(self.hub)
        self.teacher = Teacher(port=PORT, book=book, engine="tests-1")

    def page(self, name: str) -> None:
        folder = self.clone(name)
        environment = self.environment(folder)
        text = (ROOT / name).read_text(encoding="utf-8")
        for block in _blocks(name):
            for command in pages.commands(block):
                self.command(command, folder, environment)
                if command.words[0] == "export":
                    environment |= [command.words[1].split("=", 1)]
            if block.language == "toml":
                self.recipe(block, folder, environment)
        for line, wrong in pages.broken_links(ROOT / name):
            self.fail(f"{name}:{line}", wrong)
        if said := dict(pages.imports(text)):
            words = f"python -P -c '{'; '.join(said.values())}'"
            self.run(f"{name}:{min(said)}", words, words, folder, environment)

    def clone(self, name: str) -> Path:
        """A folder that looks like one, with what the page supposes."""
        folder = self.tmp / name.replace("/", "_").removesuffix(".md")
        folder.mkdir()
        made = {"bench", "build", "data", "models", "out", "runs"}
        for path in ROOT.iterdir():
            if path.name not in made and not path.name.startswith("."):
                (folder / path.name).symlink_to(path)
        for inner in ("bench", "bin", "data/hub", "models"):
            (folder / inner).mkdir(parents=True)
        for path in (ROOT / "bench").iterdir():
            (folder / "bench" / path.name).symlink_to(path)
        hf = f'#!/bin/sh\nexec {sys.executable} -P {ROOT}/tests/support/offline_hf.py {self.hub} "$@"\n'
        (folder / "bin/hf").write_text(hf)
        (folder / "bin/hf").chmod(0o755)
        if name not in FETCHES_ALL:
            self.suppose(folder, name)
        return folder

    def suppose(self, folder: Path, name: str) -> None:
        for path in self.hub.glob("*/*"):
            inner = "models" if (path / "config.json").exists() else "data/hub"
            (folder / inner / path.name).symlink_to(path)
        (folder / "Sky-T1_data_17k.json").symlink_to(folder / "data/hub/Sky-T1_data_17k/Sky-T1_data_17k.json")
        small_hub.supposed(folder)
        if name in ("README.md", "skytrain/eval/README.md"):
            problem = evaluations.Problem("aime24-1", ["correct", "wrong"])
            before = folder / "runs/eval-Qwen-Qwen2.5-32B-Instruct"
            evaluations.write(before, "Qwen/Qwen2.5-32B-Instruct", {"aime24": [problem]})
        if name == "skytrain/eval/README.md":
            evaluations.write_training(folder / "runs/sky_t1_32b")
        if name == "launch/multi_node.md":
            self.run(f"{name}: supposes", TOKENIZED, TOKENIZED, folder, self.environment(folder))

    def environment(self, folder: Path) -> dict[str, str]:
        programs = f"{folder}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        return os.environ | {
            "PATH": programs, "XDG_CONFIG_HOME": str(folder / "config"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
            "PET_MASTER_PORT": port,
        }  # fmt: skip

    def command(self, command: pages.Command, folder: Path, environment: dict[str, str]) -> None:
        where = f"{command.page}:{command.line}"
        form = short_forms.find(command.text, short_forms.FORMS)
        if form is None:
            return  # told at the start
        try:
            if form.words is not None:
                form.words(command, folder)
            short = form.shortened(command.text)
        except ValueError as error:
            return self.fail(where, f"{command.text}: {error}")
        if form.why:
            self.counts["words"] += 1
            print(f"{where:<30} {'words':<9} {command.text[:80]}  ({form.why})", flush=True)
            return
        if form.before:
            subprocess.run(["bash", "-euc", form.before], cwd=folder, check=True)
        self.run(where, short, command.text, folder, environment)

    def recipe(self, block: pages.Block, folder: Path, environment: dict[str, str]) -> None:
        """Of making data: the only kind that the pages hold whole."""
        where = f"{block.page}:{block.line}"
        if "stage" not in tomllib.loads(block.text):
            return self.fail(where, "this recipe is none of skytrain prep run, and nothing else is known for it")
        (folder / "recipe.toml").write_text(block.text, encoding="utf-8")
        self.run(where, "skytrain prep run recipe.toml", "the recipe", folder, environment)

    def run(self, where: str, short: str, text: str, folder: Path, environment: dict[str, str]) -> None:
        began = time.perf_counter()
        told = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        process = subprocess.Popen(["bash", "-c", short], cwd=folder, env=environment, text=True, **told)
        before = os.times()
        try:
            said, _ = process.communicate(timeout=LONGEST)
        except subprocess.TimeoutExpired:
            process.terminate()  # so that it ends what it has started
            said = f"{process.communicate()[0]}\nit took more than {LONGEST} s"
        self.counts["run"] += 1
        seconds = time.perf_counter() - began
        cpu = sum(os.times()[2:4]) - sum(before[2:4])
        print(f"{where:<30} {seconds:>6.1f} s ({cpu:.1f} of CPU)  {short[:150]}", flush=True)
        if process.returncode:
            last = "\n    ".join(said.splitlines()[-20:])
            self.fail(where, f"{text}\n  as: {short}\n  exit status {process.returncode}, and last:\n    {last}")

    def fail(self, where: str, what: str) -> None:
        self.failed.append(f"{where}: {what}")
        print(f"{where:<30} FAILED", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="PAGE", help="run the commands of this page alone, as README.md")
    parser.add_argument("--keep", action="store_true", help="leave the folders, and tell where they are")
    arguments = parser.parse_args()
    with socket.socket() as wanted:
        wanted.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if wanted.connect_ex(("127.0.0.1", PORT)) == 0:
            print(
                f"error: port {PORT} is taken, which the pages' servers have: end what listens there", file=sys.stderr
            )
            return 2
    began = time.perf_counter()
    there = [name for name in PAGES if (ROOT / name).exists()]
    every = [command for name in there for block in _blocks(name) for command in pages.commands(block)]
    tmp = Path(tempfile.mkdtemp(prefix="readme-"))
    serves = _vllm([command for command in every if arguments.only in (None, command.page)])
    try:
        tester = Tester(tmp)
        tester.failed += short_forms.unknown(every, short_forms.FORMS)
        with tester.teacher:
            for name in there:
                if arguments.only in (None, name):
                    tester.page(name)
        if serves is not None and serves.wait():
            tester.fail("vllm serve", serves.stdout.read()[-2000:])
    finally:
        if serves is not None:
            serves.kill()
        if arguments.keep:
            print(f"kept: {tmp}")
        else:
            shutil.rmtree(tmp)
    for failure in tester.failed:
        print(f"\n{failure}")
    counts = ", ".join(f"{count} {what}" for what, count in tester.counts.items())
    print(f"\n{counts}, {len(tester.failed)} failed, {time.perf_counter() - began:.0f} s")
    return 1 if tester.failed else 0


def _blocks(name: str) -> list[pages.Block]:
    return pages.blocks(name, (ROOT / name).read_text(encoding="utf-8"))


def _vllm(commands: list[pages.Command]) -> subprocess.Popen | None:
    """Where `make vllm` has put it, and a page has such words."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    python = Path(os.environ.get("SKYTRAIN_VLLM") or cache / "skytrain" / "vllm") / "bin" / "python"
    served = [command for command in commands if "serve" in command.words[:2]]
    if served and not python.exists():
        print("vLLM is not installed (make vllm): the words of its commands are not read by its parser")
    return short_forms.vllm_words(python, served) if served and python.exists() else None


if __name__ == "__main__":
    sys.exit(main())
