"""What a program tries against whoever grades it: each attempt fails, leaves nothing behind, and harms no neighbour."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from skytrain.errors import UserError
from skytrain.prep.grade import grade_code, processes, running
from skytrain.prep.grade import sandbox as sandboxes
from skytrain.prep.grade.pipes import Pipes

ROOT = Path(__file__).parents[2]


def printed(program, given="", expected="7", **options):
    return grade_code(program, {"inputs": [given], "outputs": [expected], "fn_name": None}, **options)


def called(program, given, expected, **options):
    return grade_code(program, {"inputs": [given], "outputs": [expected], "fn_name": "f"}, **options)


def tried(attempt, expected="refused", **options):
    """A program that prints `refused` where the attempt raises an OSError, and else what it got."""
    lines = "\n".join(f"    {line}" for line in attempt.splitlines())
    program = f"try:\n{lines}\nexcept OSError as error:\n    print('refused')\nelse:\n    print('done')"
    return printed(program, expected=expected, **options)


@pytest.fixture(autouse=True)
def the_next_program_is_unharmed():
    assert processes_of_sandboxes() == []
    yield
    assert processes_of_sandboxes() == []
    assert printed("print(7)") == "correct"


def processes_of_sandboxes(caller=None):
    """That a caller started, and of the users that are its own where it is root: nobody else's on this machine."""
    caller = caller or os.getpid()
    users = {20_000 + (caller * 64 + slot) % 40_000 for slot in range(64)} if os.getuid() == 0 else set()
    below = set(processes.below(caller))
    return [
        int(folder.name)
        for folder in Path("/proc").iterdir()
        if folder.name.isdigit() and (int(folder.name) in below or owner(folder) in users) and is_sandboxed(folder)
    ]


def owner(folder):
    try:
        return int((folder / "status").read_text().partition("Uid:\t")[2].split()[0])
    except OSError:
        return None


def is_sandboxed(folder):
    try:
        return b"OPENBLAS_NUM_THREADS=1" in (folder / "environ").read_bytes()
    except OSError:
        return False


def runs(process):
    """A dead one may wait for its number to be freed."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_missing_bubblewrap_is_no_reason_to_skip():
    assert shutil.which("bwrap") is not None
    assert printed("print(7)", sandbox="bubblewrap") == "correct"


def test_the_network_is_not_there():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        address = server.getsockname()
        attempt = f"import socket\nsocket.create_connection({address!r}, timeout=3)"
        assert tried(attempt) == "correct"
        with pytest.raises(TimeoutError):
            server.accept()
        assert tried("import socket\nsocket.getaddrinfo('example.org', 80)") == "correct"


def test_abstract_sockets_of_the_host_are_not_reached():
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0skytrain-test-{os.getpid()}")
        server.listen()
        attempt = f"import socket\nsocket.socket(socket.AF_UNIX).connect({server.getsockname()!r})"
        assert tried(attempt) == "correct"


@pytest.mark.parametrize("path", ["~", "/home", "/etc/passwd", "/etc/shadow", "/var", __file__,
                                  str(ROOT / "pyproject.toml"), "/proc/1/environ",
                                  "/proc/1/cwd/x", "/sys/class", "/run", "/dev/sda", "/dev/mem"])  # fmt: skip
def test_files_of_the_host_are_not_read(path):
    path = os.path.expanduser("~/.profile" if path == "~" else path)
    attempt = f"import os\npath = {path!r}\nprint(os.listdir(path) if os.path.isdir(path) else open(path).read())"
    assert tried(attempt) == "correct"


def test_a_link_to_a_file_of_the_host_leads_nowhere(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("7")
    attempt = f"import os\nos.symlink({str(secret)!r}, '/tmp/link')\nprint(open('/tmp/link').read())"
    assert tried(attempt) == "correct"
    assert tried("import os\nos.symlink('/proc/1/root', '/tmp/link')\nprint(os.listdir('/tmp/link/etc'))") == "correct"


@pytest.mark.parametrize("path", ["/x", "/usr/x", "/usr/bin/x", "/dev/x", "/proc/x", "/lib/x", f"{sys.base_prefix}/x",
                                  "/proc/sys/kernel/hostname", "/proc/self/oom_score_adj_x"])  # fmt: skip
def test_nothing_is_written_outside_of_its_own_folder(path):
    assert tried(f"open({path!r}, 'w').write('x')") == "correct"
    assert not os.path.exists(path) or path.startswith("/proc/sys")


def test_what_one_program_writes_no_other_sees():
    assert tried("open('/tmp/left', 'w').write('x')", "done") == "correct"
    assert tried("open('/tmp/left')") == "correct"
    assert not os.path.exists("/tmp/left")


def test_its_own_folder_is_bounded():
    attempt = "for n in range(20):\n    with open(f'/tmp/{n}', 'wb') as file:\n        file.write(bytes(10 << 20))"
    assert tried(attempt) == "correct"


def test_no_privilege_is_left_or_gained():
    program = """
import os
fields = dict(line.split(':', 1) for line in open('/proc/self/status').read().splitlines())
assert fields['NoNewPrivs'].strip() == '1'
assert os.getuid() != 0
assert int(fields['CapEff'], 16) == int(fields['CapPrm'], 16) == int(fields['CapAmb'], 16) == 0
for call, *arguments in ((os.setuid, 0), (os.setgroups, [0]), (os.chroot, '/tmp'), (os.mknod, '/tmp/a', 0o20666, 1)):
    try:
        call(*arguments)
    except OSError:
        continue
    raise AssertionError
print(7)
"""
    assert printed(program) == "correct"


CALLS = {
    "memfd": "import os\nos.memfd_create('x')",
    "shm": "import ctypes, os\nif ctypes.CDLL(None, use_errno=True).shmget(0, 1 << 20, 0o1600) < 0:\n    raise OSError",
    "namespace": "import ctypes\nif ctypes.CDLL(None).unshare(0x10000000):\n    raise OSError",
    "clone": "import ctypes\nif ctypes.CDLL(None).syscall(56, 0x10000011, 0, 0, 0, 0) == -1:\n    raise OSError",
    "ptrace": "import ctypes\nif ctypes.CDLL(None).ptrace(0, 0, 0, 0):\n    raise OSError",
    "mount": "import ctypes\nif ctypes.CDLL(None).mount(b'x', b'/tmp', b'tmpfs', 0, 0):\n    raise OSError",
}


@pytest.mark.parametrize("call", CALLS)
def test_system_calls_that_are_refused(call):
    assert tried(CALLS[call]) == "correct"


@pytest.mark.parametrize("program", [
    "import os\nwhile True:\n    os.fork()",
    "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
    "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(99,)).start()",
    "import subprocess\nwhile True:\n    subprocess.Popen(['/usr/bin/sleep', '99'])",
])  # fmt: skip
def test_processes_without_end(program):
    assert printed(program, seconds=2) in ("crash", "timeout")


@pytest.mark.parametrize("program", [
    "a = [0] * (2 << 30 >> 3)\nprint(7)",
    "a = bytearray(2 << 30)\nprint(7)",
    "a = 'x'\nwhile True:\n    a += a",
    "a = []\nwhile True:\n    a.append(bytes(1 << 20))",
    "import mmap\na = [mmap.mmap(-1, 64 << 20) for _ in range(30)]\nprint(7)",
    "a = 7 ** 7 ** 7 ** 7",
])  # fmt: skip
def test_d39_memory_without_end(program):
    assert printed(program, seconds=5) in ("crash", "timeout")


def test_memory_that_its_limit_lets_it_have():
    assert printed("a = bytearray(900 << 20)\nprint(7)") == "correct"


def test_memory_of_several_processes_counts_together():
    program = """
import os, time
for _ in range(4):
    if os.fork() == 0:
        a = b'x' * (400 << 20)
        time.sleep(20)
        os._exit(0)
time.sleep(20)
print(7)
"""
    since = time.monotonic()
    assert printed(program, seconds=15) == "crash"
    assert time.monotonic() - since < 10


def test_memory_that_processes_share_counts_once():
    program = """
import os, time
a = b'x' * (400 << 20)
children = []
for _ in range(4):
    child = os.fork()
    if child == 0:
        time.sleep(0.5)
        os._exit(0)
    children.append(child)
for child in children:
    os.waitpid(child, 0)
print(7)
"""
    assert printed(program) == "correct"


def test_output_without_end():
    for stream in ("stdout", "stderr"):
        assert printed(f"import sys\nwhile True:\n    sys.{stream}.write('y' * 9999)") == "crash"
    assert printed("import sys\nsys.stdout.write('y' * (63 << 20))", expected="y" * (63 << 20)) == "correct"


def test_a_daemon_ends_with_its_program():
    program = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(600)
        os._exit(0)
    os._exit(0)
os.wait()
print(7)
"""
    since = time.monotonic()
    assert printed(program) == "correct"
    assert time.monotonic() - since < 5
    assert processes_of_sandboxes() == []


@pytest.mark.parametrize("program", [
    "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "import signal, time\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n"
    "    except OSError: pass\nwhile True: time.sleep(9)",
    "import os, time\nif os.fork() == 0: os.setsid()\ntime.sleep(99)",
    "import time\ntime.sleep(99)",
    "import sys, time\nsys.stdout.close()\nsys.stderr.close()\ntime.sleep(99)",
    "import os, time\nfor n in range(256):\n    try: os.close(n)\n    except OSError: pass\ntime.sleep(99)",
    "import re\nre.match(r'(a+)+$', 'a' * 40 + 'b')",
    "import threading\nt = threading.Thread(target=lambda: [None for _ in iter(int, 1)])\nt.start()",
])  # fmt: skip
def test_time_without_end(program):
    since = time.monotonic()
    assert printed(program, given="x" * 1_000_000, seconds=1) == "timeout"
    assert time.monotonic() - since < 5


@pytest.mark.parametrize("attempt", ["os.kill(-1, 9)", "os.kill(os.getppid(), 9)", "os.kill(1, 9)", "os.killpg(0, 9)",
                                     "os.kill(CALLER, 9)", "os.kill(CALLER, 15)"])  # fmt: skip
def test_nobody_else_is_killed(attempt):
    attempt = attempt.replace("CALLER", str(os.getpid()))
    program = f"import os, time\ntry:\n    {attempt}\nexcept OSError:\n    pass\ntime.sleep(0.1)\nprint(7)"
    bystander = subprocess.Popen(["sleep", "60"])
    assert printed(program, seconds=3) in ("correct", "crash")
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_the_caller_may_be_interrupted():
    program = "import time\ntime.sleep(60)"
    code = "from skytrain.prep.grade import grade_code\n"
    code += f"grade_code({program!r}, {{'inputs': [''], 'outputs': ['']}}, seconds=60)"
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE)
    until = time.monotonic() + 20
    while not processes_of_sandboxes(child.pid) and time.monotonic() < until:
        time.sleep(0.05)
    started = processes_of_sandboxes(child.pid)
    child.send_signal(2)
    assert b"KeyboardInterrupt" in child.communicate(timeout=20)[1]
    assert started and not any(map(runs, started))


def test_the_caller_may_be_killed():
    program = "import time\ntime.sleep(60)"
    code = "from skytrain.prep.grade import grade_code\n"
    code += f"grade_code({program!r}, {{'inputs': [''], 'outputs': ['']}}, seconds=60)"
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    until = time.monotonic() + 20
    while not processes_of_sandboxes(child.pid) and time.monotonic() < until:
        time.sleep(0.05)
    started = processes_of_sandboxes(child.pid)
    child.kill()
    child.wait()
    assert started
    until = time.monotonic() + 5
    while any(map(runs, started)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(runs, started))


def test_neighbours_do_not_take_each_others_processes():
    forks = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    bomb = threading.Thread(target=printed, args=(forks,), kwargs={"seconds": 2})
    bomb.start()
    time.sleep(0.5)
    program = (
        "import threading\nts = [threading.Thread(target=int) for _ in range(4)]\nfor t in ts: t.start()\nprint(7)"
    )
    assert [printed(program) for _ in range(3)] == ["correct"] * 3
    bomb.join()


def test_no_descriptor_leaks():
    before = sorted(os.listdir("/proc/self/fd"))
    for program in ("print(7)", "1 / 0", "while True: pass", "def f(a): return a", "import sys; sys.stdin.close()"):
        printed(program, given="x" * 200_000, seconds=0.3)
    called("def f(a): return a", [1], 1)
    grade_code("def f(a): return a", {"check": "def check(candidate): assert candidate(1) == 1", "entry_point": "f"})
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_sandbox_that_does_not_start_is_the_users_to_mend(monkeypatch, tmp_path):
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    sandboxes._bubblewrap.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r'No permissions to create new namespace.*sandbox="process"'):
        printed("print(7)")
    broken.unlink()
    sandboxes._bubblewrap.cache_clear()
    with pytest.raises(UserError, match="no bwrap on the PATH; install bubblewrap"):
        printed("print(7)")
    monkeypatch.undo()
    sandboxes._bubblewrap.cache_clear()


def test_the_weaker_sandbox_limits_what_a_program_uses():
    assert printed("print(7)", sandbox="process") == "correct"
    assert called("def f(a): return [a]", [1], [1], sandbox="process") == "correct"
    assert printed("a = [0] * (2 << 30 >> 3)", sandbox="process") == "crash"
    assert printed("while True: pass", sandbox="process", seconds=0.5) == "timeout"
    assert printed("while True: print('y' * 99999)", sandbox="process") == "crash"
    child = "import os, time\nif os.fork() == 0: time.sleep(60)\nprint(7)"
    assert printed(child, sandbox="process") == "correct"


def test_what_a_sandbox_inherits():
    """Beside the three of every program nothing but what the runner opened, and that is closed before a program."""
    pipes = Pipes()
    job = {"mode": "run", "program": "import os\nprint(sorted(os.listdir('/proc/self/fd')), sorted(os.environ))"}
    program = running.Program(pipes, "bubblewrap", job, 5.0, b"")
    try:
        assert running.watch(pipes, [program], 5.0) is None
        assert (
            program.output.decode()
            == "['0', '1', '2', '3'] ['HOME', 'LC_ALL', 'OPENBLAS_NUM_THREADS', 'PATH', 'PWD']\n"
        )
    finally:
        program.close()
