"""The sandbox of an ordinary user, which needs a namespace of users."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
AS_A_USER = """
import json, os, sys
from skytrain.prep.grade.code import grade_code
tests = {"inputs": ["3\\n"], "outputs": ["3\\n"]}
print(json.dumps([grade_code(program, tests, seconds=2) for program in json.load(sys.stdin)]))
"""


def test_an_ordinary_user_has_the_same_sandbox():
    if os.getuid() != 0:
        pytest.skip("all of these tests run as an ordinary user here")
    pythons = [path for path in (os.path.realpath(sys.executable), "/usr/bin/python3") if usable(Path(path))]
    if not pythons:
        pytest.skip("no Python of 3.11 or later here can be run by an ordinary user")
    refused = "try:\n    {}\nexcept OSError:\n    print(input())\nelse:\n    print('done')"
    programs = {
        "print(input())": "correct",
        "print(open('/dev/stdin').read())": "correct",
        "import os\n" + refused.format("os.listdir('/home')"): "correct",
        refused.format("open('/etc/passwd')"): "correct",
        refused.format("open('/dev/x', 'w')"): "correct",
        refused.format("open('/x', 'w')"): "correct",
        "import socket\n" + refused.format("socket.create_connection(('127.0.0.1', 22), 1)"): "correct",
        "import os\nwhile True: os.fork()": "crash",
        "a = [0] * (2 << 30 >> 3)": "crash",
        "import time\ntime.sleep(9)": "timeout",
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(99)\nprint(3)": "correct",
        "import os\nos.kill(-1, 9)": "crash",
    }
    done = subprocess.run(
        [pythons[0], "-B", "-c", AS_A_USER], input=json.dumps(list(programs)), text=True, stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}, user=54321, group=54321, extra_groups=[], cwd="/",
    )  # fmt: skip
    assert done.returncode == 0
    assert dict(zip(programs, json.loads(done.stdout))) == programs


def usable(path):
    def open_to_all(folder):
        return all(each.stat().st_mode & 0o005 == 0o005 for each in (folder, *folder.parents))

    if not path.exists() or not open_to_all(path.resolve().parent) or not open_to_all(ROOT):
        return False
    done = subprocess.run([path, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"])
    return done.returncode == 0
