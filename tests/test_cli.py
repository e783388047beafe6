"""The command by itself: what is missing and what interrupts it are one line."""

import subprocess
import sys

import pytest

CODE = "import sys; sys.modules['torch'] = None\nfrom skytrain.cli import main; main()"


@pytest.mark.parametrize("words", [["plan", "launch/recipes/cpu_demo.toml"], ["export", "x", "--step", "1", "y"]])
def test_a_command_that_needs_torch_says_so(words):
    done = subprocess.run([sys.executable, "-P", "-c", CODE, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert (
        done.stderr.strip()
        == "error: this command needs torch; pip install 'skytrain[train]' (skytrain doctor tells more)"
    )


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
