"""Verdicts on programs: the handed cases, and more of the same kinds. What programs may not do is another file's."""

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from skytrain.prep.grade import grade_code

CASES = Path(__file__).parents[1] / "cases" / "programs.jsonl"
HANDED = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]


def printed(program, given, expected, **options):
    return grade_code(program, {"inputs": [given], "outputs": [expected], "fn_name": None}, **options)


def called(program, given, expected, name="f", **options):
    return grade_code(program, {"inputs": [given], "outputs": [expected], "fn_name": name}, **options)


@pytest.mark.parametrize("case", HANDED, ids=[case["id"] for case in HANDED])
def test_handed(case):
    assert (grade_code(case["program"], case["tests"]) == "correct") == case["passes"]


def test_the_verdicts_of_handed_programs_that_fail():
    verdicts = {
        case["id"]: grade_code(case["program"], case["tests"], seconds=3) for case in HANDED if not case["passes"]
    }
    assert verdicts == {"P10": "wrong", "P22": "timeout", "P24": "crash", "P32": "wrong", "P36": "crash"}


READERS = {
    "buffer.read": "import sys\nprint(sum(map(int, sys.stdin.buffer.read().split())))",
    "read": "import sys\nprint(sum(map(int, sys.stdin.read().split())))",
    "readlines": "import sys\nprint(sum(int(x) for line in sys.stdin.readlines() for x in line.split()))",
    "open(0)": "print(sum(map(int, open(0).read().split())))",
    "open(0) in bytes": "print(sum(map(int, open(0, 'rb').read().split())))",
    "/dev/stdin": "print(sum(map(int, open('/dev/stdin').read().split())))",
    "os.read": "import os\nprint(sum(map(int, os.read(0, 99).split())))",
    "fileinput": "import fileinput\nprint(sum(int(x) for line in fileinput.input() for x in line.split()))",
    "input": "print(sum(map(int, input().split())))",
    "iter": "import sys\nprint(sum(int(x) for line in iter(sys.stdin.readline, '') for x in line.split()))",
    "io": "import io, os\ninput = io.BytesIO(os.read(0, os.fstat(0).st_size or 99)).readline\n"
    "print(sum(map(int, input().split())))",
    "class": "class Main:\n    def run(self):\n        print(sum(map(int, input().split())))\nMain().run()",
}


@pytest.mark.parametrize("reader", READERS)
def test_ways_to_read(reader):
    assert printed(READERS[reader], "3 4\n", "7\n") == "correct"
    assert printed(READERS[reader], "3 5\n", "7\n") == "wrong"


WRITERS = {
    "write": "import sys\nsys.stdout.write('7\\n')",
    "buffer": "import sys\nsys.stdout.buffer.write(b'7\\n')",
    "os.write": "import os\nos.write(1, b'7')",
    "/dev/stdout": "f = open('/dev/stdout', 'w')\nf.write('7')",
    "fd 1": "print('7', file=open(1, 'w'))",
    "closed": "import sys\nprint(7)\nsys.stdout.close()",
    "atexit": "import atexit\natexit.register(print, 7)",
    "another stdout": "import sys, os, io\nsys.stdout = io.StringIO()\nprint(7)\n"
    "os.write(1, sys.stdout.getvalue().encode())",
    "a wrapped stdout": "import io, os, sys\nclass Wrapper(io.IOBase):\n    def __init__(self, file):\n"
    "        self.buffer = io.BytesIO()\n        self.file = file\n"
    "        self.write = lambda s: self.buffer.write(s.encode())\n"
    "    def flush(self):\n        os.write(self.file.fileno(), self.buffer.getvalue())\n"
    "        self.buffer.seek(0)\n        self.buffer.truncate(0)\n"
    "class Plain:\n    def __init__(self, file): self.flush, self.write = file.flush, file.write\n"
    "sys.stdout = Plain(Wrapper(sys.stdout))\nsys.stdout.write('7')",
    "a cycle with a file": "class A: pass\na = A()\na.a, a.f = a, open(1, 'w')\na.f.write('7')",
    "a file that a function holds": "f = open(1, 'w')\nf.write('7')\ndef g(): return f",
    "del with globals": "def show(): print(x)\nx = 7\nclass A:\n    def __del__(self): show()\na = A()",
    "an atexit that writes at the end": "import atexit, io, sys\nout = io.StringIO()\nreal = sys.stdout\n"
    "sys.stdout = out\natexit.register(lambda: real.write(out.getvalue()))\nprint(7)",
    "del": "class A:\n    def __del__(self):\n        print(7)\na = A()",
    "thread": "import threading\nt = threading.Thread(target=print, args=(7,))\nt.start()",
    "exec": "exec('print(7)')",
    "dataclass": "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nprint(A(7).x)",
    "pickle": "import pickle\nclass A:\n    x = 7\nprint(pickle.loads(pickle.dumps(A())).x)",
    "__file__": "print('7' if 'seven' in open(__file__).read() else 0)",
    "argv": "import sys\nprint(len(sys.argv) + 6)",
    "subclass of str": "class S(str):\n    pass\nprint(S(7))",
    "bom": "\ufeffprint(7)",
    "crlf": "if True:\r\n    print(7)\r\n",
    "form feed and tabs": "\x0cif True:\n\tprint(7)",
    "tmp": "open('/tmp/a', 'w').write('7')\nprint(open('a').read())",
    "warnings on stderr": "import sys\nprint('x' * 100000, file=sys.stderr)\nprint(7)",
}


@pytest.mark.parametrize("writer", WRITERS)
def test_ways_to_write(writer):
    assert printed(WRITERS[writer], "", "7\n") == "correct"


GOOD_ENDS = ["exit()", "quit()", "exit(0)", "import sys; sys.exit()", "import sys; sys.exit(None)", "raise SystemExit"]


@pytest.mark.parametrize("leave", [*GOOD_ENDS, "import os, sys; sys.stdout.flush(); os._exit(0)"])
def test_ways_to_leave_well(leave):
    assert printed(f"print(7)\n{leave}\nprint(8)", "", "7\n") == "correct"


BAD_ENDS = [
    *("exit(1)", "import sys; sys.exit('no')", "1 / 0", "raise KeyboardInterrupt", "assert 0", "import os; os.abort()"),
    *(
        "import os; os.kill(os.getpid(), 9)",
        "def f(:",
        "x = '",
        "import os; os._exit(3)",
        "import nothing_of_this_name",
    ),
    *(
        "input()",
        "return 7",
        "import sys\nsys.stdout = object()",
        "def f(): f()\nf()",
        "import ctypes; ctypes.string_at(1)",
        "'\0'",
        "'\ud800'",
    ),
]


@pytest.mark.parametrize("leave", BAD_ENDS, ids=ascii)
def test_ways_to_leave_badly_even_with_the_right_output(leave):
    assert printed(f"print(7, flush=True)\n{leave}\n", "", "7\n") == "crash"


@pytest.mark.parametrize(
    "expected, given, same",
    [
        ("a\n", "a", True),
        ("a", "a\n\n\n", True),
        ("a\nb\n", "a  \nb\t\n", True),
        ("a\r\nb\r\n", "a\nb\n", True),
        ("a\n\nb", "a\nb", False),
        ("a\nb", "a b", False),
        ("a", " a", False),
        ("a", "\na", False),
        ("a b", "a\tb", False),
        ("a b", "a  b", False),
        ("Yes", "YES", False),
        ("", "", True),
        ("", "0", False),
        ("1", "", False),
        ("1\n2", "1", False),
        ("1", "1\n2", False),
        ("0.333333333333", "0.333333", True),
        ("0.333333", "0.33333", False),
        ("1000000.0", "1000000.9", True),
        ("1000000.0", "1000001.1", False),
        ("1e6", "1000000", True),
        ("1", "1.0", True),
        ("1.", "1", True),
        (".5", "0.5", True),
        ("-0.0", "0", True),
        ("0.0000001", "0", True),
        ("50000000000000001", "50000000000000000", False),
        ("50000000000000001.0", "50000000000000000.0", True),
        ("1", "01", False),
        ("1", "+1", False),
        ("1e400", "1e400", True),
        ("1e400", "1e500", False),
        ("1e400", "1.0000000001e400", True),
        ("1e99999999999999999999", "1.0", False),
        ("nan", "nan", True),
        ("nan", "1.0", False),
        ("inf", "1e999", False),
        ("1_0.0", "10.0", False),
        ("0x10", "16.0", False),
        ("x 0.50 y", "x 0.5 y", True),
        ("x 0.50 y", "x 0.5 z", False),
        ("0.50  1", "0.5 1", False),
        ("0.5 1", "0.5", False),
        ("٣.0", "3.0", False),
        ("ä", "ä", True),
        ("[0.50]", "[0.5]", False),
    ],
)
def test_printed_output_is_compared_by_the_policies(expected, given, same):
    program = "import sys\nsys.stdout.write(sys.stdin.buffer.read().decode())"
    assert printed(program, given, expected) == ("correct" if same else "wrong")


def test_output_that_is_no_text_is_wrong():
    assert printed("import sys\nsys.stdout.buffer.write(b'\\xff\\xfe')", "", "7") == "wrong"


def test_long_runs_and_long_lines_are_compared_in_linear_time():
    since = time.monotonic()
    program = "print('a' + ' ' * 3_000_000 + 'b')\nprint('1.0 ' * 100_000)\nprint('\\n' * 1_000_000)"
    assert printed(program, "", "a" + " " * 3_000_000 + "b\n" + "1 " * 100_000) == "correct"
    assert time.monotonic() - since < 8


def test_integers_of_any_number_of_digits_are_printed_and_returned():
    assert printed("print(10**20000)", "", "1" + "0" * 20000) == "correct"
    assert called("def f(n): return n + 1", "1" + "0" * 20000, "1" + "0" * 19999 + "1") == "correct"
    assert called("def f(n): return n", "1" + "0" * 20000, "1" + "0" * 19999 + "1") == "wrong"


@pytest.mark.parametrize(
    "program",
    [
        "import sys\nsys.setrecursionlimit(10**6)\nfrom functools import lru_cache\n@lru_cache(None)\n"
        "def f(n): return 0 if n == 0 else 1 + f(n - 1)\nprint(f(20000))",
        "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(256 << 20)\n"
        "def f(n): return 0 if n == 0 else max(map(f, [n - 1])) + 1\n"
        "def main(): print(f(20000))\nt = threading.Thread(target=main)\nt.start()\nt.join()",
        "import sys\nsys.setrecursionlimit(10**6)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)\nprint(f(20000))",
    ],
    ids=["through C", "a thread with a large stack", "plain"],
)
def test_deep_recursion(program):
    assert printed(program, "", "20000") == "correct"


def test_inputs_and_outputs_of_tens_of_megabytes():
    text = "12345678 " * 3_000_000
    assert printed("import sys\nprint(len(sys.stdin.read()))", text, str(len(text))) == "correct"
    assert printed("print(7)", text, "7") == "correct"
    assert printed("import sys\nsys.stdout.write('12345678 ' * 3_000_000)", "", text) == "correct"


def test_numpy_where_a_program_names_it():
    program = "import numpy as np\nprint(int((np.arange(5) @ np.arange(5)) + np.linalg.det(np.eye(2))))"
    assert printed(program, "", "31") == "correct"
    assert called("import numpy as np\ndef f(a): return np.sum(a)", [[1, 2]], 3) == "correct"


@pytest.mark.parametrize(
    "program, given, expected, verdict",
    [
        ("class Solution:\n    def f(self, a, b): return a + b", "1\n2", "3", "correct"),
        ("class Solution:\n    def f(self, a, b): return a + b", [1, 2], 3, "correct"),
        ("class Solution:\n    def f(self, a, b): return a + b", "1\n2\n", 3, "correct"),
        ("def f(a): return a", ["3"], "3", "correct"),
        ("def f(a): return int(a)", ["3"], "3", "wrong"),
        ("def f(a): return a", '"3"', '"3"', "correct"),
        ("def f(a): return a", '"x"', "x", "correct"),
        ("def f(): return 1", "", "1", "correct"),
        ("def f(a): return [a]", [5], 5, "wrong"),
        ("def f(a): return a", [5], [5], "wrong"),
        ("def f(a): return (1, (2,))", [5], [1, [2]], "correct"),
        ("def f(a): return [True]", [5], [1], "wrong"),
        ("def f(a): return [1]", [5], [True], "wrong"),
        ("def f(a): return 1.0", [5], True, "wrong"),
        ("def f(a): return None", [5], None, "correct"),
        ("def f(a): pass", [5], 0, "wrong"),
        ("def f(a): return 0", [5], None, "wrong"),
        ("def f(a): return 0.1 + 0.2", [5], 0.3, "correct"),
        ("def f(a): return 3.0", [5], 3, "correct"),
        ("def f(a): return 3", [5], 3.0, "correct"),
        ("def f(a): return 3.00001", [5], 3, "wrong"),
        ("def f(a): return 10**17", [5], 10**17 + 1, "wrong"),
        ("def f(a): return float('nan')", [5], 1.5, "wrong"),
        ("def f(a): return float('inf')", "1", "Infinity", "correct"),
        ("def f(a): return 'A'", [5], "a", "wrong"),
        ("def f(a): return 'a '", [5], "a", "wrong"),
        ("def f(a): return {1: 2}", [5], {"1": 2}, "correct"),
        ("def f(a): return {'a': (1,)}", [5], {"a": [1]}, "correct"),
        ("def f(a): return {1: 2, '1': 2}", [5], {"1": 2}, "wrong"),
        ("def f(a): return {True: 2}", [5], {"1": 2}, "wrong"),
        ("from collections import *\ndef f(a): return Counter('aab')", [5], {"a": 2, "b": 1}, "correct"),
        ("from collections import *\ndef f(a): return defaultdict(int, a=1)", [5], {"a": 1}, "correct"),
        ("from collections import *\ndef f(a): return deque([1, 2])", [5], [1, 2], "correct"),
        ("from collections import *\nP = namedtuple('P', 'x y')\ndef f(a): return P(1, 2)", [5], [1, 2], "correct"),
        ("def f(a): return {1, 2}", [5], [1, 2], "wrong"),
        ("def f(a): return iter([1, 2])", [5], [1, 2], "wrong"),
        ("def f(a): return map(int, '12')", [5], [1, 2], "wrong"),
        ("def f(a): return object()", [5], "x", "wrong"),
        ("def f(a): return f", [5], "x", "wrong"),
        ("def f(a):\n    a = []\n    a.append(a)\n    return a", [5], [], "wrong"),
        ("def f(a): print(5)", [5], 5, "wrong"),
        ("def f(a):\n    print('x' * 99999)\n    return a", [5], 5, "correct"),
        ("def g(a): return a", [5], 5, "crash"),
        ("class Solution:\n    def g(self, a): return a", [5], 5, "crash"),
        ("def f(a, b): return a", [5], 5, "crash"),
        ("def f(a): return a\nf(1)(2)", [5], 5, "crash"),
        ("def f(a): raise SystemExit", [5], None, "wrong"),
        ("def f(a): return input()", [5], "", "crash"),
        ("class Solution:\n    def h(self, a): return a\n    def f(self, a): return self.h(a)", [5], 5, "correct"),
        ("class Solution:\n    @staticmethod\n    def f(a): return a", [5], 5, "correct"),
        ("class Solution:\n    pass\ndef f(a): return a", [5], 5, "correct"),
        ("f = lambda a: a", [5], 5, "correct"),
        ("def f(a): return a\nif __name__ == '__main__':\n    print(f(int(input())))", [5], 5, "correct"),
        ("def f(n): return 0 if n == 0 else 1 + f(n - 1)", [20000], 20000, "correct"),
    ],
)
def test_returned_values(program, given, expected, verdict):
    assert called(program, given, expected) == verdict


def test_names_that_leetcode_gives_are_given_to_functions_alone():
    program = """class Solution:
    def f(self, a: List[int], b: Optional[str] = None) -> Dict[int, int]:
        q, h = deque(a), []
        for x in q: heappush(h, (x, inf))
        heapq.heapify(h)
        c = Counter(a) | collections.Counter()
        @cache
        def g(n): return n and gcd(n, math.pi > 3) + reduce(lambda x, y: x + y, accumulate([n, 0]))
        return [h[0][0], c[1], g(2), bisect_left(a, 2), bisect.bisect(a, 2), isqrt(9), len(list(permutations(a)))]"""
    assert called(program, [[1, 2, 3]], [1, 1, 5, 1, 2, 3, 6]) == "correct"
    assert called("count = 3\ndef chain(x): return x\ndef f(a): return chain(count)", [1], 3) == "correct"
    assert called("def f(a): return nothing(a)", [1], 1) == "crash"
    assert printed("print(deque([7]).pop())", "", "7") == "crash"


def test_d43_each_sample_has_its_own_tests():
    program = "print(input())"
    assert [printed(program, "1", expected) for expected in ("1", "2")] == ["correct", "wrong"]


def test_d41_a_hundred_programs_from_many_threads():
    stop = threading.Event()
    busy = threading.Thread(target=stop.wait)
    busy.start()
    before = sorted(os.listdir("/proc/self/fd"))
    with ThreadPoolExecutor(16) as pool:
        verdicts = list(pool.map(lambda n: printed("print(int(input()) % 7)", str(n), str(n % 5)), range(100)))
    stop.set()
    busy.join()
    assert verdicts == ["correct" if n % 7 == n % 5 else "wrong" for n in range(100)]
    assert sorted(os.listdir("/proc/self/fd")) == before
