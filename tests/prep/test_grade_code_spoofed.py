"""What a program tries to be called correct: to find what is expected, and to speak for whoever compares."""

import pytest

from skytrain.prep.grade import grade_code


def printed(program, given="", expected="7", **options):
    return grade_code(program, {"inputs": [given], "outputs": [expected], "fn_name": None}, **options)


def called(program, given, expected, **options):
    return grade_code(program, {"inputs": [given], "outputs": [expected], "fn_name": "f"}, **options)


SPIES = {
    "frames": "import sys\nframe = sys._getframe()\nwhile frame:\n"
    "    found += [repr(frame.f_locals), repr(frame.f_globals)]\n"
    "    frame = frame.f_back",
    "gc": "import gc\nfound += [repr(o) for o in gc.get_objects() if isinstance(o, (str, dict, list, tuple, bytes))]",
    "environments": "import glob\nfor p in glob.glob('/proc/*/environ') + glob.glob('/proc/*/cmdline'):\n"
    "    try: found.append(open(p).read())\n    except OSError: pass",
    "descriptors": "import os\nfor n in range(3, 256):\n    try:\n        os.set_blocking(n, False)\n"
    "        found.append(repr(os.read(n, 9999)))\n    except OSError: pass",
    "files": "import os\nfor d, _, names in os.walk('/tmp'):\n"
    "    found += [open(os.path.join(d, n)).read() for n in names if n != 'program.py']",
    "memory": "import ctypes\nfor line in open('/proc/self/maps').read().splitlines():\n    fields = line.split()\n"
    "    start, end = (int(x, 16) for x in fields[0].split('-'))\n"
    "    if 'r' in fields[1] and fields[-1] in ('0', '[heap]', '[stack]'):\n"
    "        found.append(ctypes.string_at(start, end - start).decode('latin-1'))",
}


@pytest.mark.parametrize("spy", SPIES)
def test_what_is_expected_is_not_to_be_found(spy):
    hidden = "zq" + "81726354"
    look = "found = []\n" + SPIES[spy] + "\nmark = 'zq' + str(81726355 - 1)\nseen = any(mark in text for text in found)"
    assert printed(look + "\nprint(mark if seen else 'nothing')", expected=hidden) == "wrong"
    lines = "\n    ".join(look.splitlines())
    assert called(f"def f(a):\n    {lines}\n    return mark if seen else None", [1], hidden) == "wrong"


@pytest.mark.parametrize("spy", ["frames", "gc", "memory"])
def test_the_search_itself_finds_what_is_there(spy):
    lines = "\n    ".join(("found = []\n" + SPIES[spy]).splitlines())
    program = (
        f"def f(a):\n    {lines}\n    mark = 'zq' + str(81726355 - 1)\n    return any(mark in text for text in found)"
    )
    assert called(program, ["zq" + "81726354"], True) == "correct"


EQUAL = """
class A(BASE):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 1
    def __iter__(self): return iter([1, 2, 3])
    def __len__(self): return 3
    def __getitem__(self, n): return n + 1
    def __repr__(self): return '[1, 2, 3]'
    def __reduce__(self): return (list, ([1, 2, 3],))
    @property
    def __class__(self): return list
def f(a):
    return A()
"""


@pytest.mark.parametrize("base", ["object", "list", "tuple", "dict", "set", "str", "int", "float", "bytes"])
def test_equality_is_not_the_programs_to_tell(base):
    program = EQUAL.replace("BASE", base)
    assert [called(program, [1], value) for value in ([1, 2, 3], True, 1, "x")] == ["wrong"] * 4
    check = "def check(candidate):\n    assert candidate(1) == [1, 2, 3]"
    assert grade_code(program, {"check": check, "entry_point": "f"}) == "wrong"


@pytest.mark.parametrize("attack", [
    "import builtins\nbuiltins.all = builtins.any = builtins.isinstance = lambda *a: True",
    "import sys\nfor name in dir(sys.modules['__main__']): pass\nsys.exit(0)",
    "import os\nfor n in range(3, 1024):\n    try: os.write(n, b'l1\\ni1\\n1')\n    except OSError: pass",
    "import os\nfor n in range(3, 1024):\n    try: os.write(n, b'correct')\n    except OSError: pass\nos._exit(0)",
    "import os\nfor n in range(3, 1024):\n    try: os.write(n, b'\\x00' * 65536)\n    except OSError: pass",
    "import os\nfor n in range(3, 1024):\n    try:\n"
    "        os.write(n, (4).to_bytes(8, 'little') + b'T' * 4)\n    except OSError: pass",
    "import sys\nsys.modules['marshal'] = sys.modules['posix'] = None",
])  # fmt: skip
def test_verdicts_are_not_the_programs_to_write(attack):
    attack = "\n    ".join(attack.splitlines())
    program = f"def f(a):\n    {attack}\n    return 8"
    assert called(program, [1], 7) in ("wrong", "crash")
    assert called(program, [1], [[9, 9]]) in ("wrong", "crash")
    check = "def check(candidate):\n    for _ in range(3):\n        assert candidate(1) == [7]"
    assert grade_code(program, {"check": check, "entry_point": "f"}, seconds=3) in ("wrong", "crash", "timeout")


@pytest.mark.parametrize("result", [b"l9999999999\n", b"l1\n" * 5000, b"i3\nxyz", b"i999999999999\n1", b"q",
                                    b"d1\nl0\nN",
                                    b"s1\n\xff", b"NN", b"l-5\n", b"f3\nabc", b"i-1\n", b"t"])  # fmt: skip
def test_a_result_of_no_form_is_wrong(result):
    program = f"import os\ndef f(a):\n    for n in range(3, 1024):\n        try: os.write(n, {result!r})\n"
    program += "        except OSError: pass\n    os._exit(0)"
    assert called(program, [1], []) == ("correct" if result == b"l-5\n" else "wrong")
