"""What `skytrain doctor` tries in a process of its own: python -m skytrain.doctor_probe NAME ...

Prints a line of JSON for each name, in their order: what there is of it, `error` where it is there and does not work,
or `missing`. An import that ends the process, or never returns, is that of the first name without a line.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from typing import Any

DISTRIBUTIONS = {
    "flash_attn": "flash-attn",
    "flash_attn.cute": "flash-attn-4",
    "liger_kernel": "liger-kernel",
    "latex2sympy2_extended": "latex2sympy2-extended",
}
"""Of packages whose name on the index is another than that which is imported."""


def main() -> None:
    # Packages talk while they are imported: what they print is not ours.
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nothing, stream)
    for name in sys.argv[1:]:
        print(json.dumps({"name": name, **look(name)}), file=own, flush=True)
    own.flush()
    # Without the packages' own clean-up, which may fail or wait.
    os._exit(0)


def look(name: str) -> dict[str, Any]:
    """What there is of one name: `missing`, `error`, or what its try tells."""
    try:
        return TRIES.get(name, _imported)(name)
    except ModuleNotFoundError as error:
        # The package itself, or one that it needs, which is a broken installation.
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            return {"missing": True}
        return {"error": first_line(error)}
    except BaseException as error:
        return {"error": first_line(error)}


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _imported(name: str) -> dict[str, Any]:
    module = importlib.import_module(name)
    try:
        version = importlib.metadata.version(DISTRIBUTIONS.get(name, name))
    except importlib.metadata.PackageNotFoundError:
        version = getattr(module, "__version__", "")
    return {"version": str(version)}


def _extension(name: str) -> dict[str, Any]:
    """One of ours, which a clone that was never built lacks. That of torch's operations is loaded after torch."""
    if importlib.util.find_spec(name) is None:
        return {"missing": True}
    if name == "skytrain._C":
        import torch  # noqa: F401
    importlib.import_module(name)
    return {"version": ""}


def _torch(name: str) -> dict[str, Any]:
    import torch
    import torch.distributed as dist

    found = {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip, "gpus": []}
    found["nccl"] = dist.is_available() and dist.is_nccl_available()
    if torch.cuda.is_available():
        found["gpus"] = [_gpu(torch, index) for index in range(torch.cuda.device_count())]
    return found


def _gpu(torch: Any, index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    found = {
        "name": properties.name,
        "memory": properties.total_memory,
        "capability": [properties.major, properties.minor],
        "problem": None,
    }
    try:
        # A product as training has them; each is 256, which bf16 holds exactly.
        ones = torch.ones(256, 256, device=f"cuda:{index}", dtype=torch.bfloat16)
        if not bool((ones @ ones == 256).all()):
            found["problem"] = "a product in bf16 comes out wrong"
    except Exception as error:
        found["problem"] = first_line(error)
    return found


def _kernel(name: str) -> dict[str, Any]:
    """One of our Triton kernels on the GPU beside its formula: Triton compiles it, and its start with a C compiler."""
    import torch

    from skytrain.kernels.rms_norm import rms_norm

    x = torch.arange(512, device="cuda", dtype=torch.float32).view(4, 128) / 64
    weight = torch.ones(128, device="cuda")
    ours, formula = (rms_norm(x, weight, 1e-6, backend=backend) for backend in ("triton", "reference"))
    if not torch.allclose(ours, formula, rtol=1e-4, atol=1e-5):
        return {"error": "a kernel's numbers are not those of its formula"}
    return {"version": ""}


def _transformers(name: str) -> dict[str, Any]:
    # What `skytrain verify export` takes of it; the package by itself imports next to nothing.
    from transformers import AutoModelForCausalLM  # noqa: F401

    return _imported(name)


def _answers(name: str) -> dict[str, Any]:
    """The grader of mathematical answers, on one whose form needs the parser of LaTeX."""
    from skytrain.prep.grade import grade_math

    verdict = grade_math(r"So it is $\boxed{\frac{\sqrt{8}}{2}}$.", r"\sqrt{2}", seconds=20)
    return {"version": ""} if verdict == "correct" else {"error": f"a right answer is told to be {verdict!r}"}


def _programs(name: str) -> dict[str, Any]:
    """A tiny program in the sandbox of this level."""
    from skytrain.errors import UserError
    from skytrain.prep.grade import grade_code

    level = name.partition(":")[2]
    try:
        verdict = grade_code("print(int(input()) + 1)", {"inputs": ["1\n"], "outputs": ["2\n"]}, sandbox=level)
    except UserError as error:
        return {"error": str(error)}
    return {"version": ""} if verdict == "correct" else {"error": f"a right program is told to be {verdict!r}"}


TRIES: dict[str, Callable[[str], dict[str, Any]]] = {
    "skytrain._pack": _extension,
    "skytrain._C": _extension,
    "torch": _torch,
    "kernel": _kernel,
    "transformers": _transformers,
    "answers": _answers,
    "programs:bubblewrap": _programs,
    "programs:process": _programs,
}

if __name__ == "__main__":
    main()
