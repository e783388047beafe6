"""The short form of each command of the pages: what is replaced so that it runs here in seconds, or why it is not run
and what of its words is checked in that place.
"""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pages import Command

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Form:
    """Of the commands that begin with `pattern`; of several forms the first counts.

    edits: pattern to what stands in its place, each of which must be found. added: words behind it. before: what is
    done first, for bash. words: is given the command, as the page has it, and the folder that it would run in; a
    ValueError says what is wrong with it. why: it is not run, for this reason.
    """

    pattern: str
    edits: Mapping[str, str] = field(default_factory=dict)
    added: str = ""
    before: str = ""
    words: Callable[[Command, Path], None] | None = None
    why: str = ""

    def shortened(self, text: str) -> str:
        """ValueError for a replacement of what is not there."""
        for pattern, replacement in self.edits.items():
            text, count = re.subn(pattern, replacement, text)
            if not count:
                raise ValueError(f"the short form replaces {pattern!r}, which is not there")
        return f"{text} {self.added}".strip()


def find(text: str, forms: list[Form]) -> Form | None:
    return next((form for form in forms if re.match(form.pattern, text)), None)


def unknown(commands: list[Command], forms: list[Form]) -> list[str]:
    """A line for each command that no form is of, and for each form that is of no command."""
    found = [find(command.text, forms) for command in commands]
    lines = [f"{c.page}:{c.line}: no short form is known for: {c.text}" for c, f in zip(commands, found) if f is None]
    used = {id(form) for form in found}
    return lines + [f"no page has a command any more for: {form.pattern}" for form in forms if id(form) not in used]


def torchrun(command: Command, folder: Path) -> None:
    from torch.distributed.run import get_args_parser

    _parsed(lambda: get_args_parser().parse_args(command.words[1:]))


def pip(command: Command, folder: Path) -> None:
    from pip._internal.commands import create_command

    options, named = _parsed(lambda: create_command("install").parse_args(command.words[2:]))
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in named:
        for extra in re.findall(r"\[(.*)\]", name):
            if missing := set(extra.split(",")) - known.keys():
                raise ValueError(f"pyproject.toml has no extra {', '.join(sorted(missing))}")
    for path in options.constraints:
        if not (folder / path).exists():
            raise ValueError(f"{path} is not there")


def sbatch(command: Command, folder: Path) -> None:
    from skytrain import config
    from skytrain.errors import UserError

    words = command.words
    recipe, *settings = words[words.index("launch/slurm.sh") + 1 :]
    try:
        config.load(ROOT / recipe, settings)
    except UserError as error:
        raise ValueError(str(error)) from None


def serve(command: Command, folder: Path) -> None:
    """The model's folder alone; `vllm_words` has the words, those of all commands at once."""
    served = command.words[command.words.index("serve") + 1]
    found = sorted(folder.glob(served))
    if len(found) != 1 or not (found[0] / "config.json").exists() or not (found[0] / "tokenizer.json").exists():
        raise ValueError(f"{served} is not one folder of a model: {', '.join(map(str, found)) or 'nothing is there'}")


_VLLM = """
import json, sys
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser
for words in json.loads(sys.argv[1]):
    parser = FlexibleArgumentParser(prog="vllm")
    ServeSubcommand().subparser_init(parser.add_subparsers(required=True))
    parser.parse_args(words)
"""


def vllm_words(python: Path, commands: list[Command]) -> subprocess.Popen:
    """vLLM's own parser reads the words of its commands, beside all else: to import it takes half a minute."""
    words = [command.words[command.words.index("serve") :] for command in commands]
    told = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([python, "-P", "-c", _VLLM, json.dumps(words)], **told)


def _parsed(parse: Callable):
    try:
        return parse()
    except SystemExit:
        raise ValueError("its program's own parser refuses the words; what it says stands above") from None


TRAINED = "train.max_steps=2 train.compile=false checkpoint.every=1"
AGAIN = "rm -r runs/sky_t1_32b/checkpoints/step-00000002 runs/sky_t1_32b/export"
"""So that a run that is gone on with has a step to do."""
SERVED = {r"node1:": "127.0.0.1:", r"node2:": "localhost:"}
RANKS = {r"--nproc-per-node 8": "--nproc-per-node 2"}
NODES = {r"--nnodes 2": "--nnodes 1", r"node1:29500": "localhost:0", **RANKS}
FEW = "--limit 2 --samples 1"

FORMS = [
    Form(r"git clone ", why="the tests are in a clone"),
    Form(r"cd ", why="the folder is like a clone"),
    Form(r"export \w+=\S+$", why="it holds for the commands behind it"),
    Form(r"\. \.venv/bin/activate$", why="every command here is given this environment's programs"),
    Form(r"python3 -m venv ", added="--without-pip"),
    Form(r"(\S+/)?pip install ", words=pip, why="it needs the network: pip's parser, extras and files"),
    Form(r"sudo apt-get install", {"sudo apt-get": "apt-get --simulate"}),
    Form(r"make ", {"make ": "make -n "}),
    Form(r"hf download "),
    Form(r"(\S+/)?vllm serve ", words=serve, why="vLLM's parser and the model's folder; make loop serves"),
    Form(r"skytrain doctor$"),
    Form(r"skytrain plan --calibrate$"),
    Form(r"skytrain plan "),
    Form(r"skytrain verify .*--only data$"),
    # tests/test_verify.py makes the checks with several processes, which take a minute.
    Form(r"skytrain verify ", added="train.compile=false --only data,export,packing"),
    Form(r"skytrain prep tokenize "),
    Form(r"skytrain prep run .*node1", SERVED),
    Form(r"skytrain prep run "),
    Form(r"skytrain eval --rescore "),
    Form(r"skytrain eval .*node1", SERVED, FEW),
    Form(r"skytrain eval ", added=FEW),
    Form(r"skytrain report "),
    Form(r"skytrain export .*--step 500", {"--step 500": "--step 1"}),
    Form(r"skytrain export "),
    Form(r"torchrun --nnodes 2 ", NODES, TRAINED, words=torchrun),
    Form(r"torchrun --nproc-per-node 8 launch/train.py .*--resume auto$", RANKS, TRAINED, AGAIN, torchrun),
    Form(r"torchrun --nproc-per-node 8 ", RANKS, TRAINED, words=torchrun),
    Form(r"sbatch ", words=sbatch, why="Slurm is not here: the settings; tests/launch/test_slurm.py runs the script"),
    Form(r"scancel ", why="Slurm is not here; tests/launch/test_slurm.py sends the signal"),
]  # fmt: skip
