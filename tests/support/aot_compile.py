"""Compiles the launches of a JSON file for GPUs that are not there: `aot_compile.py launches.json results.json`.

A process of its own, started by aot.py, since Triton's interpreter replaces the language for the whole process.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

PTXAS = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"


def compile_one(fields: dict) -> dict[str, object]:
    kernel = getattr(importlib.import_module(fields["module"]), fields["kernel"])
    source = ASTSource(
        kernel,
        fields["signature"],
        constexprs=fields["constants"],
        attrs={(index,): [["tt.divisibility", 16]] for index in fields["divisible"]},
    )
    options = {"num_warps": fields["num_warps"], "num_stages": fields["num_stages"]}
    try:
        compiled = triton.compile(source, target=GPUTarget("cuda", fields["target"], 32), options=options)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    ptx = compiled.asm["ptx"]
    return {"ptx": ptx, "shared": compiled.metadata.shared, "log": assemble(ptx) if fields["target"] == 90 else ""}


def assemble(ptx: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(ptx)
        command = [str(PTXAS), "-v", "--gpu-name=sm_90a", str(path), "-o", str(path.with_suffix(".cubin"))]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout + done.stderr


def main() -> None:
    question, answer = sys.argv[1:]
    launches = json.loads(Path(question).read_text())
    for fields in launches:
        importlib.import_module(fields["module"])
    # ptxas is a process of its own, so two threads keep one core busy and use a second.
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(compile_one, launches))
    Path(answer).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
