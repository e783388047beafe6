"""What the facts about a machine mean for a person: a line each, and how to get what is missing.

Grouped by what one wants to do. Takes facts alone (doctor_facts.py), so that any machine can be judged on any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from skytrain.doctor_facts import CORE, Facts
from skytrain.errors import UserError

State = Literal["ok", "limited", "missing"]
GIB = 2**30
PYTHON = ((3, 11), (3, 14))
"""From the first on, before the second."""
OLDEST_TORCH = (2, 11)
PREP = "pip install '.[prep]' in the clone"
BUILD = "pip install --no-build-isolation '.[train,prep]' in the clone"
TORCH = f"pip install torch, then {BUILD}"
TABLE = "skytrain plan --calibrate measures this machine, and writes a row"
BUBBLEWRAP = "apt-get install bubblewrap"
NAMESPACES = (
    "in a container give it --security-opt seccomp=unconfined; elsewhere as root: sysctl -w "
    "kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0 (those that there are)"
)


class Finding(NamedTuple):
    """One line. `basic`: without it nothing can be trained on this machine's device."""

    name: str
    state: State
    what: str
    remedy: str = ""
    basic: bool = False


def judged(facts: Facts) -> dict[str, list[Finding]]:
    """What one wants to do, and the findings on it."""
    groups = {
        "train": [*_basics(facts), *_devices(facts), *_faster(facts), *_resources(facts)],
        "prepare data": [*_preparing(facts)],
        "grade": [*_grading(facts)],
        "evaluate": [*_evaluating(facts)],
        "serve": [*_serving(facts)],
    }
    return groups


def trains(groups: dict[str, list[Finding]]) -> bool:
    """Whether training on this machine's device works."""
    return not any(finding.basic and finding.state != "ok" for group in groups.values() for finding in group)


def _tried(facts: Facts, name: str) -> tuple[bool, str]:
    """(whether a try went well, its version, or why it did not)."""
    told = facts["tries"][name]
    if told.get("missing"):
        return False, "not installed"
    return ("error" not in told), told.get("error", told.get("version", ""))


def _state(facts: Facts, name: str) -> State:
    """Broken is limited: something is there, and stands in the way of its own installation."""
    told = facts["tries"][name]
    return "missing" if told.get("missing") else "limited" if "error" in told else "ok"


def _basics(facts: Facts) -> Iterator[Finding]:
    version = tuple(facts["python"])
    text = f"{'.'.join(map(str, version))}, {facts['executable']}"
    good = PYTHON[0] <= version[:2] < PYTHON[1]
    yield Finding(
        "Python", "ok" if good else "limited", text if good else f"{text}: skytrain runs on 3.11 to 3.13",
        "" if good else "make setup PYTHON=python3.12", basic=True,
    )  # fmt: skip
    broken = [(name, *_tried(facts, name)) for name in CORE]
    wrong = [f"{name}: {why}" for name, works, why in broken if not works]
    told = "; ".join(wrong) or ", ".join(f"{name} {version}" for name, _, version in broken)
    yield Finding("libraries", "limited" if wrong else "ok", told, PREP if wrong else "", basic=True)
    yield _compiler(facts)
    yield _extension(
        facts, "skytrain._pack", "packs documents", "no data set can be packed, so that nothing trains", basic=True
    )
    yield _torch(facts)
    yield _extension(
        facts, "skytrain._C", "attention on a CPU, AdamW in host memory",
        "attention on a CPU runs by its formula, slower, and optim.format = host does not run", basic=False,
    )  # fmt: skip


def _compiler(facts: Facts) -> Finding:
    found = facts["compiler"]
    use = "builds the extensions; Triton and train.compile use one too"
    if found is None:
        return Finding("C++ compiler", "missing", f"{use}: what is built already works without", "apt-get install g++")
    if not found["cpp20"]:
        text = f"{found['path']} {found['version']} does not take C++20: the extensions cannot be built"
        return Finding("C++ compiler", "limited", text, "apt-get install g++, of version 11 or newer")
    return Finding("C++ compiler", "ok", f"{found['path']} {found['version']}, C++20: {use}")


def _extension(facts: Facts, name: str, use: str, without: str, *, basic: bool) -> Finding:
    works, why = _tried(facts, name)
    if works:
        return Finding(name, "ok", use, basic=basic)
    reason = "not built" if _state(facts, name) == "missing" else why
    return Finding(name, _state(facts, name), f"{reason}: {without}", BUILD, basic=basic)


def _torch(facts: Facts) -> Finding:
    works, why = _tried(facts, "torch")
    if not works:
        text = "nothing trains here; data preparation, grading and evaluation go without it"
        return Finding("torch", _state(facts, "torch"), f"{why}: {text}", TORCH, basic=True)
    told = facts["tries"]["torch"]
    build = f"CUDA {told['cuda']}" if told["cuda"] else f"ROCm {told['hip']}" if told["hip"] else "CPU build"
    number = tuple(int(part) for part in why.split(".")[:2] if part.isdigit())
    if number < OLDEST_TORCH:
        return Finding(
            "torch", "limited", f"{why}, {build}: older than 2.11, which is needed",
            f"pip install -U torch, then {BUILD}", basic=True,
        )  # fmt: skip
    return Finding("torch", "ok", f"{why}, {build}", basic=True)


def _devices(facts: Facts) -> Iterator[Finding]:
    """GPUs as torch sees them; those that NVIDIA's tool sees and torch does not; NCCL; Triton."""
    gpus, smi = _gpus(facts), facts["smi"]
    if not gpus:
        yield _no_gpu(facts, smi)
        return
    driver = f", driver {smi['driver']}" if smi and "driver" in smi else ""
    for gpu in {str(gpu): gpu for gpu in gpus}.values():
        yield _gpu(gpu, gpus.count(gpu), driver)
    if len(gpus) > 1:
        good = facts["tries"]["torch"]["nccl"]
        text = "between the GPUs" if good else "this torch is built without it: one GPU trains, several do not"
        yield Finding("NCCL", "ok" if good else "missing", text, "" if good else TORCH, basic=True)
    works, why = _tried(facts, "triton")
    if works:
        works, trouble = _tried(facts, "kernel")
        why = f"{why}: a kernel compiles, and its numbers are right" if works else f"{why}: {trouble}"
        state: State = "ok" if works else "limited"
    else:
        state = _state(facts, "triton")
    slow = "; kernels.backend = reference trains without, slower and in more memory"
    yield Finding(
        "triton", state, why if works else why + slow,
        "" if works else "pip install triton; apt-get install gcc python3-dev (it compiles a little C)", basic=True,
    )  # fmt: skip


def _gpus(facts: Facts) -> list[dict[str, Any]]:
    return facts["tries"]["torch"].get("gpus", [])


def _no_gpu(facts: Facts, smi: dict[str, Any] | None) -> Finding:
    if smi is None:
        return Finding("GPU", "limited", "none: trains tiny models on the CPU; Triton and flash-attn are for GPUs")
    if "error" in smi:
        text = f"nvidia-smi is there and {smi['error']}: the driver does not work, and training is on the CPU alone"
        return Finding("GPU", "limited", text, "install or reload NVIDIA's driver, then restart", basic=True)
    told, count = facts["tries"]["torch"], len(smi["gpus"])
    names = f"{count} x {smi['gpus'][0]}, driver {smi['driver']}"
    if not _tried(facts, "torch")[0]:
        return Finding("GPU", "limited", f"{names}: no torch that could use it", TORCH, basic=True)
    if told["cuda"] is None:
        text = f"{names}: this torch is built without CUDA, and trains on the CPU alone"
        return Finding("GPU", "limited", text, f"pip uninstall torch, then {TORCH}", basic=True)
    text = f"{names}: torch finds none of them: a driver too old for CUDA {told['cuda']}, or CUDA_VISIBLE_DEVICES"
    return Finding("GPU", "limited", text, "unset CUDA_VISIBLE_DEVICES, or a newer driver (nvidia-smi)", basic=True)


def _gpu(gpu: dict[str, Any], count: int, driver: str) -> Finding:
    """count: of GPUs that are alike."""
    from skytrain.plan.hardware import of_name

    major, minor = gpu["capability"]
    text = f"{count} x {gpu['name']}, {gpu['memory'] / GIB:.1f} GiB, compute capability {major}.{minor}{driver}"
    if major < 8:
        text += ": no bf16, and attention by its formula, slow: set train.dtype=float32"
        return Finding("GPU", "limited", text, basic=False)
    if gpu["problem"] is not None:
        return Finding("GPU", "limited", f"{text}: a product fails ({gpu['problem']})", "nvidia-smi tells more", True)
    try:
        row = of_name(gpu["name"])
    except UserError as error:
        return Finding("GPU", "limited", f"{text}, bf16: {error}", basic=True)
    if row is None:
        unknown = "not in the hardware table: no time is planned, activations.budget_gib = auto has no size"
        return Finding("GPU", "limited", f"{text}, bf16; {unknown}", TABLE)
    return Finding("GPU", "ok", f"{text}, bf16, {row.id} in the hardware table", basic=True)


def _faster(facts: Facts) -> Iterator[Finding]:
    """What training can do without."""
    if _gpus(facts):
        four, two = _state(facts, "flash_attn.cute"), _state(facts, "flash_attn")
        # The one that is taken; where both are broken, the newer one is told of.
        name = "flash_attn.cute" if four == "ok" or (four != "missing" and two != "ok") else "flash_attn"
        shown, own = "flash-attn" + (" 4" if "." in name else ""), "attention runs by torch's own kernels"
        yield _optional(facts, name, shown, "", own, "pip install flash-attn-4 (from compute capability 9.0 on)")
        yield _optional(facts, "liger_kernel", "liger-kernel", "kernels.backend = liger", "skytrain's own kernels run")
    yield _optional(facts, "torchao", "torchao", "train.float8", "no train.float8")
    yield _optional(facts, "tensorboard", "tensorboard", "", "set log.tensorboard=false, or no run begins")
    yield _optional(facts, "transformers", "transformers", "skytrain verify export", "no skytrain verify export")


def _optional(facts: Facts, name: str, shown: str, use: str, without: str, remedy: str = "") -> Finding:
    works, why = _tried(facts, name)
    if works:
        return Finding(shown, "ok", ": ".join(filter(None, (why, use))))
    if "missing" not in (_state(facts, name), _state(facts, "torch")) and not _tried(facts, "torch")[0]:
        remedy = "see torch, which it needs"
    return Finding(shown, _state(facts, name), f"{why}: {without}", remedy or f"pip install {shown}")


def _resources(facts: Facts) -> Iterator[Finding]:
    yield Finding("cores", "ok", f"{facts['cores']}, {facts['memory'] / GIB:.1f} GiB of host memory")
    disk = facts["disk"] or 0
    low = disk < 20 * GIB
    text = f"{disk / GIB:.1f} GiB free in this folder"
    text += " (of a 7B model a checkpoint takes 46 to 91 GB, the export 15)" if disk < 150 * GIB else ""
    yield Finding("disk", "limited" if low else "ok", text, "name another disk by run.dir=..." if low else "")
    shm, several = facts["shm"], len(_gpus(facts)) > 1
    if shm is None or (several and shm < GIB):
        text = "/dev/shm " + ("is not there" if shm is None else f"has {shm / GIB:.2f} GiB free")
        yield Finding("/dev/shm", "limited", f"{text}: GPUs exchange there", "docker run --shm-size 16g, or --ipc host")
    else:
        yield Finding("/dev/shm", "ok", f"{shm / GIB:.1f} GiB free")
    few = 0 <= facts["files"] < 1024
    text = "no limit" if facts["files"] < 0 else f"{facts['files']:,}"
    text += ": too few for hundreds of requests and many files" if few else ""
    yield Finding("open files", "limited" if few else "ok", text, "ulimit -n 65536" if few else "")


def _preparing(facts: Facts) -> Iterator[Finding]:
    yield _optional(facts, "pyarrow", "Parquet", "pyarrow", "no Parquet files, JSON lines alone", PREP)
    yield _optional(facts, "aiohttp", "servers", "aiohttp", "no server can be asked: no label, generate, rewrite", PREP)


def _grading(facts: Facts) -> Iterator[Finding]:
    works, why = _tried(facts, "answers")
    if works:
        yield Finding("answers", "ok", f"LaTeX is parsed by latex2sympy2-extended {_tried(facts, LATEX)[1]}")
    else:
        parser, reason = _tried(facts, LATEX)
        text = f"{why if parser else f'latex2sympy2-extended {reason}'}: answers of mathematics cannot be graded"
        yield Finding("answers", "missing" if not parser else "limited", text, PREP)
    yield _programs(facts)


LATEX = "latex2sympy2_extended"


def _programs(facts: Facts) -> Finding:
    (inside, why), (alone, trouble) = (_tried(facts, f"programs:{level}") for level in ("bubblewrap", "process"))
    if inside:
        return Finding("programs", "ok", "in bubblewrap: without files, network or other processes")
    remedy = BUBBLEWRAP if "no bwrap" in why else NAMESPACES
    if alone:
        text = f"only with --sandbox process, which hides neither files nor the network ({why})"
        return Finding("programs", "limited", text, remedy)
    return Finding("programs", "missing", f"programs cannot be graded: {why}; and alone: {trouble}", remedy)


def _evaluating(facts: Facts) -> Iterator[Finding]:
    servers, rows = _tried(facts, "aiohttp")[0], _tried(facts, "pyarrow")[0]
    needs = [(servers, "aiohttp to ask a server"), (rows, "pyarrow to read published rows")]
    for name, graded, what in (
        ("mathematics", _tried(facts, "answers")[0], "graded answers"),
        ("programs", _tried(facts, "programs:bubblewrap")[0], "graded programs in bubblewrap"),
    ):
        lacking = [text for there, text in [*needs, (graded, what)] if not there]
        text = f"without {', '.join(lacking)}: see above" if lacking else "benchmarks can be asked and judged"
        yield Finding(name, "missing" if lacking else "ok", text)


def _serving(facts: Facts) -> Iterator[Finding]:
    found = facts["vllm"]
    if found is None:
        text = "nothing here serves a model; any server that speaks OpenAI's chat completions will do"
        remedy = "make vllm (for a CPU); for a GPU pip install vllm, in an environment of its own"
        yield Finding("vLLM", "missing", text, remedy)
        return
    version = found["version"] or "of an unknown version"
    yield Finding("vLLM", "ok", f"{version}, {found['path']} (not started here)")
