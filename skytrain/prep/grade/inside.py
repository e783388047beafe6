"""What runs in the sandbox: it confines itself, runs a program, and sends back what a function of it returned.

The parent compiles this file and sends it through a pipe, so that it may import only what Python has at its start, and
nothing of this package. Values cross in an encoding of their own: whatever a program does to `==`, to a class's methods
or to this very code, what arrives is a tree of builtin values, to be compared where the program is not.
"""

from __future__ import annotations

import gc
import posix
import sys

# Both take as long to import as half of Python's start.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

BOOT = """import marshal, posix, sys
posix.write(int(sys.argv[2]), b"B")
with open(int(sys.argv[1]), "rb") as file:
    code, job = marshal.load(file), marshal.load(file)
names = {}
exec(code, names)
names["main"](job, int(sys.argv[2]))
"""
DEEPEST = 300
"""Lists within lists: deeper values are no answer, and must not meet Python's own limit here or in the parent."""
RECURSION = 50_000
"""Functions without a main program have no place to raise the limit themselves."""

_PLAIN = {None: b"N", True: b"T", False: b"F"}
_MARKS = {b"N": None, b"T": True, b"F": False}
_NAMES = {
    "typing": "Any Callable DefaultDict Deque Dict FrozenSet Generator Iterable Iterator List NamedTuple Optional "
    "Sequence Set Tuple Type TypeVar Union",
    "collections": "ChainMap Counter OrderedDict defaultdict deque namedtuple",
    "heapq": "heapify heappop heappush heappushpop heapreplace merge nlargest nsmallest",
    "bisect": "bisect_left bisect_right insort insort_left insort_right",
    "functools": "cache cached_property cmp_to_key lru_cache partial reduce total_ordering wraps",
    "itertools": "accumulate chain combinations combinations_with_replacement compress count cycle dropwhile "
    "filterfalse groupby islice pairwise permutations product repeat starmap takewhile tee zip_longest",
    "math": "acos asin atan atan2 ceil comb copysign cos degrees dist e exp fabs factorial floor fmod gcd hypot inf "
    "isclose isfinite isinf isnan isqrt lcm log log10 log2 nan perm pi prod radians sin sqrt tan tau trunc",
    "operator": "add and_ attrgetter floordiv ge gt iand ior itemgetter ixor le lt methodcaller mod mul ne neg or_ "
    "sub truediv xor",
    "random": "choice choices randint randrange sample shuffle",
    "string": "ascii_letters ascii_lowercase ascii_uppercase digits punctuation",
    "dataclasses": "dataclass field",
}
_NAMES |= {"copy": "deepcopy", "decimal": "Decimal", "enum": "Enum IntEnum", "fractions": "Fraction"}
_MODULES = "bisect collections copy datetime decimal functools heapq io itertools json math operator random re "
_MODULES += "statistics string sys time typing"


class Opaque:
    """Stands for a value that is none of the builtin kinds. It equals nothing."""

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None


class Unencodable(Exception):
    """A value that is none of the builtin kinds, or nested too deeply."""


def encode(value: Any) -> bytes:
    """A tree of None, bool, int, float, complex, str, bytes, list, tuple, set, frozenset and dict. Subclasses count as
    their builtin kind, and a deque as a list. Raises `Unencodable`."""
    parts: list[bytes] = []
    _encode(value, parts, 0)
    return b"".join(parts)


def _encode(value: Any, parts: list[bytes], depth: int) -> None:
    kind = type(value)
    if depth > DEEPEST:
        raise Unencodable(kind.__name__)
    if value is None or value is True or value is False:
        parts.append(_PLAIN[value])
    elif issubclass(kind, int):
        _append(parts, b"i", int.__format__(value, "x").encode())
    elif issubclass(kind, float):
        _append(parts, b"f", float.__repr__(value).encode())
    elif issubclass(kind, complex):
        _append(parts, b"c", complex.__repr__(value).encode())
    elif issubclass(kind, str):
        _append(parts, b"s", str.encode(value, "utf-8", "surrogatepass"))
    elif issubclass(kind, bytes):
        _append(parts, b"b", bytes.__getitem__(value, slice(None)))
    elif issubclass(kind, dict):
        pairs = list(dict.items(value))
        parts.append(b"d%d\n" % len(pairs))
        for key, item in pairs:
            _encode(key, parts, depth + 1)
            _encode(item, parts, depth + 1)
    else:
        _encode_items(value, kind, parts, depth)


def _encode_items(value: Any, kind: type, parts: list[bytes], depth: int) -> None:
    for tag, base in ((b"l", list), (b"t", tuple), (b"S", set), (b"z", frozenset), (b"l", _deque())):
        if base is not None and issubclass(kind, base):
            items = list(base.__iter__(value))
            parts.append(b"%s%d\n" % (tag, len(items)))
            for item in items:
                _encode(item, parts, depth + 1)
            return
    if kind.__module__ == "numpy" and hasattr(kind, "item") and not hasattr(kind, "__len__"):
        return _encode(kind.item(value), parts, depth + 1)
    raise Unencodable(kind.__name__)


def _append(parts: list[bytes], tag: bytes, content: bytes) -> None:
    parts += (b"%s%d\n" % (tag, len(content)), content)


def _deque() -> type | None:
    return getattr(sys.modules.get("_collections"), "deque", None)


def decode(data: bytes) -> Any:
    """Of `encode`. Raises `ValueError` for anything else, which a program may have sent."""
    value, end = _decode(data, 0, 0)
    if end != len(data):
        raise ValueError("more than one value")
    return value


def _decode(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    tag = data[at : at + 1]
    if depth > DEEPEST or not tag:
        raise ValueError("nested too deeply, or cut short")
    if tag in _MARKS:
        return _MARKS[tag], at + 1
    line = data.index(b"\n", at, at + 30)
    size, at = int(data[at + 1 : line]), line + 1
    if tag in (b"i", b"f", b"c", b"s", b"b"):
        if not 0 <= size <= len(data) - at:
            raise ValueError("cut short")
        return _leaf(tag, data[at : at + size]), at + size
    items = []
    for _ in range(size * 2 if tag == b"d" else size):
        item, at = _decode(data, at, depth + 1)
        items.append(item)
    try:
        return _KINDS[tag](items), at
    except (KeyError, TypeError):
        raise ValueError("no such kind, or a key or member that cannot be hashed") from None


def _leaf(tag: bytes, content: bytes) -> Any:
    if tag == b"b":
        return content
    text = content.decode("utf-8", "surrogatepass")
    if tag == b"i":
        return int(text, 16)
    return float(text) if tag == b"f" else complex(text) if tag == b"c" else text


_KINDS: dict[bytes, Callable[[list[Any]], Any]] = {
    b"l": list,
    b"t": tuple,
    b"S": set,
    b"z": frozenset,
    b"d": lambda items: dict(zip(items[::2], items[1::2])),
}


def main(job: dict[str, Any], outbox: int) -> None:
    """Becomes the user that the job says, tells the parent so, and does the job's one thing. Limits are set from
    outside: a library to set them takes long to load."""
    if job["user"] is not None:
        # Root's number of processes has no limit, and root's capabilities would be kept.
        posix.setgroups([])
        posix.setgid(job["user"])
        posix.setuid(job["user"])
    # What is there already need not be searched for garbage, which takes long at the end.
    gc.freeze()
    _write(outbox, b"R")
    _MODES[job["mode"]](job, outbox)


def _load(job: dict[str, Any], name: str) -> tuple[Any, dict[str, Any]]:
    """The program's code, and the namespace of a new module for it; the program lies in a file of the working folder,
    which tracebacks and programs read."""
    import builtins
    from _sitebuiltins import Quitter

    builtins.exit, builtins.quit = Quitter("exit", "Ctrl-D"), Quitter("quit", "Ctrl-D")
    sys.set_int_max_str_digits(0)
    sys.path += job["path"]
    path = posix.getcwd() + "/program.py"
    sys.argv[:] = [path]
    source = job["program"].removeprefix("\ufeff")
    file = posix.open(path, posix.O_WRONLY | posix.O_CREAT)
    _write(file, source.encode("utf-8", "surrogatepass"))
    posix.close(file)
    # The runner's own module stays alive in the interpreter, which holds no reference to it.
    sys.modules["__runner__"] = sys.modules["__main__"]
    module = sys.modules[name] = type(sys)(name)
    module.__file__ = path
    module.__builtins__ = builtins
    code = compile(source, path, "exec", dont_inherit=True)
    if job.get("imports"):
        _give_names(code, module.__dict__)
    return code, module.__dict__


def _run(job: dict[str, Any], outbox: int) -> None:
    posix.close(outbox)
    exec(*_load(job, "__main__"))


def _call(job: dict[str, Any], outbox: int) -> None:
    """Sends what the function returned, or nothing where that is no value."""
    code, namespace = _load(job, "program")
    sys.setrecursionlimit(RECURSION)
    exec(code, namespace)
    solution, name = namespace.get("Solution"), job["name"]
    if isinstance(solution, type) and hasattr(solution, name):
        function = getattr(solution(), name)
    elif name in namespace:
        function = namespace[name]
    else:
        raise NameError(f"the program defines no function {name!r}")
    result = function(*job["arguments"])
    try:
        _write(outbox, encode(result))
    except Unencodable:
        posix._exit(0)
    posix._exit(0)


def _give_names(code: Any, namespace: dict[str, Any]) -> None:
    """What LeetCode imports for its programs, and of it only what this one names."""
    used = _names_in(code)
    for module in _MODULES.split():
        if module in used:
            namespace[module] = __import__(module)
    for module, names in _NAMES.items():
        wanted = used.intersection(names.split())
        if wanted:
            imported = __import__(module)
            namespace.update((name, getattr(imported, name)) for name in wanted)


def _names_in(code: Any) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if type(constant) is type(code):
            names |= _names_in(constant)
    return names


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[posix.write(file, view) :]


def _serve(job: dict[str, Any], outbox: int) -> None:
    """Runs a program, and then its functions, for a check in another sandbox."""
    code, namespace = _load(job, "program")
    exec(code, namespace)
    names = decode(_receive(job["receive"]))
    known = {}
    for name in names:
        if name in namespace:
            try:
                known[name] = ("callable",) if callable(namespace[name]) else ("value", decode(encode(namespace[name])))
            except Unencodable:
                continue
    _send(job["send"], encode(known))
    while True:
        name, args, keywords = decode(_receive(job["receive"]))
        try:
            result = namespace[name](*args, **keywords)
        except BaseException as error:
            reply = encode(("error", [kind.__name__ for kind in type(error).__mro__], str(error)[:1000]))
        else:
            try:
                reply = encode(("result", result, args, keywords))
            except Unencodable:
                reply = encode(("opaque",))
        _send(job["send"], reply)


def _check(job: dict[str, Any], outbox: int) -> None:
    """Runs the check with proxies for the other sandbox's functions, and sends the verdict."""
    try:
        code = compile(job["program"], "<check>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        _write(outbox, b"malformed")
        return
    faults: list[BaseException] = []
    verdict = b"wrong"
    try:
        namespace = _proxies(job, _names_in(code), faults)
        candidate = namespace.get(job["name"])
        exec(code, namespace)
        if not callable(namespace.get("check")):
            verdict = b"malformed"
        elif candidate is None:
            verdict = b"crash"
        else:
            namespace["check"](candidate)
            verdict = b"correct"
    except Gone:
        verdict = b"crash"
    except BaseException as error:
        verdict = b"crash" if any(error is fault for fault in faults) else b"wrong"
    _write(outbox, verdict)
    posix._exit(0)


class Gone(BaseException):
    """The other sandbox ended. No check catches it."""


def _proxies(job: dict[str, Any], names: set[str], faults: list[BaseException]) -> dict[str, Any]:
    import builtins

    # A program's own idea of `abs` or `all` is not what the check means.
    wanted = sorted(name for name in names - {"check"} | {job["name"]} if not hasattr(builtins, name))
    _send(job["send"], encode(wanted))
    namespace: dict[str, Any] = {"__name__": "check", "__builtins__": builtins}
    for name, found in decode(_receive(job["receive"])).items():
        if name in wanted:
            namespace[name] = _proxy(job, name, faults) if found[0] == "callable" else found[1]
    return namespace


def _proxy(job: dict[str, Any], name: str, faults: list[BaseException]) -> Callable[..., Any]:
    def call(*args: Any, **keywords: Any) -> Any:
        _send(job["send"], encode((name, list(args), keywords)))
        reply = decode(_receive(job["receive"]))
        if reply[0] == "result":
            for mine, theirs in (*zip(args, reply[2]), *((keywords[key], reply[3][key]) for key in keywords)):
                _copy_back(mine, theirs)
            return reply[1]
        if reply[0] == "error":
            faults.append(_error(*reply[1:]))
            raise faults[-1]
        return Opaque()

    return call


def _copy_back(mine: Any, theirs: Any) -> None:
    """What a function did to an argument."""
    if type(mine) is not type(theirs) or type(mine) not in (list, dict, set):
        return
    if type(mine) is list:
        mine[:] = theirs
    else:
        mine.clear()
        mine.update(theirs)


def _error(kinds: list[str], text: str) -> Exception:
    import builtins

    for name in kinds:
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                return kind(text)
            except TypeError:  # A UnicodeDecodeError is not made from a text.
                continue
    return RuntimeError(text)


def _send(file: int, data: bytes) -> None:
    try:
        _write(file, len(data).to_bytes(8, "little") + data)
    except BrokenPipeError:
        raise Gone from None


def _receive(file: int) -> bytes:
    return _read(file, int.from_bytes(_read(file, 8), "little"))


def _read(file: int, size: int) -> bytes:
    parts = []
    while size:
        part = posix.read(file, min(size, 1 << 16))
        if not part:
            raise Gone
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


_MODES = {"run": _run, "call": _call, "serve": _serve, "check": _check}
