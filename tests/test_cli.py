"""The command by itself: what is missing and what interrupts it are one line."""

import re
import subprocess
import sys

import pytest

from skytrain import cli

CODE = "import sys; sys.modules['{}'] = None\nfrom skytrain.cli import main; main()"
LACKING = [
    ("torch", "train", ["plan", "launch/recipes/cpu_demo.toml"]),
    ("torch", "train", ["export", "x", "--step", "1", "y"]),
    ("aiohttp", "prep", ["eval", "--tasks", "aime24"]),
]


def without(library, *words):
    command = [sys.executable, "-P", "-c", CODE.format(library), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("library, extra, words", LACKING)
def test_a_command_that_needs_a_library_says_so(library, extra, words):
    done = without(library, *words)
    assert done.returncode == 2
    advice = f"pip install 'skytrain[{extra}]' (skytrain doctor tells more)"
    assert done.stderr.strip() == f"error: this command needs {library}; {advice}"


def test_the_package_is_the_command():
    done = subprocess.run([sys.executable, "-P", "-m", "skytrain", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and re.fullmatch(r"skytrain \S+\n", done.stdout)


def test_a_command_does_without_the_libraries_of_another():
    done = without("aiohttp", "prep", "tokenize", "--help")
    assert done.returncode == 0 and "usage: skytrain prep tokenize" in done.stdout
    done = without("aiohttp", "plan", "nowhere.toml")
    assert done.returncode == 2 and "nowhere.toml: No such file" in done.stderr


@pytest.mark.parametrize("words, listed", [(["--help"], cli.COMMANDS), (["prep", "--help"], cli.STAGES)])
def test_help_lists_every_command(capsys, words, listed):
    with pytest.raises(SystemExit):
        cli.parse(words)
    told = capsys.readouterr().out
    assert all(re.search(rf"^    {name} ", told, re.MULTILINE) for name in listed)


@pytest.mark.parametrize("words, known", [(["plann"], "'report'"), (["prep", "toknize"], "'tokenize'")])
def test_an_unknown_command_lists_those_that_there_are(capsys, words, known):
    with pytest.raises(SystemExit):
        cli.parse(words)
    assert known in capsys.readouterr().err


@pytest.mark.parametrize("length", [1, 10**6])
def test_a_reader_that_has_had_enough_is_no_error(length):
    """What is short fails as the process ends, what is long as it is written."""
    work = f"print('first', flush=True) or input() or print('x' * {length})"
    code = f"from skytrain.errors import exit_on_user_error as run; run(lambda: {work})"
    pipe = subprocess.PIPE
    done = subprocess.Popen([sys.executable, "-P", "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert done.stdout.readline() == "first\n"
    done.stdout.close()
    done.stdin.write("\n")
    done.stdin.close()
    assert (done.wait(60), done.stderr.read()) == (128 + 13, "")


def test_ctrl_c_while_the_commands_are_imported():
    code = """import builtins, sys
import skytrain.cli
own = builtins.__import__
def interrupted(name, *rest):
    if name.startswith("skytrain.prep"):
        raise KeyboardInterrupt
    return own(name, *rest)
builtins.__import__ = interrupted
skytrain.cli.main()"""
    done = subprocess.run([sys.executable, "-P", "-c", code, "prep"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
