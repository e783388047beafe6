"""Builds the two C++ extensions; everything else is declared in pyproject.toml.

`skytrain._pack` is plain C++ (no torch, no numpy headers) and is always built. `skytrain._C` registers
torch operations and is built only where torch can be imported, so that `pip install skytrain[prep]`
works on a machine without torch. Under pip's build isolation torch is never importable: install with
`--no-build-isolation` to get `_C`. Neither needs a GPU or CUDA headers.
"""

import os
import shutil
import sys

from setuptools import Extension, setup

# Before anything else, whose failure would be told in a hundred lines.
if sys.version_info < (3, 11):  # noqa: UP036 (pip asks for the version after this file has run)
    sys.exit(f"error: skytrain needs Python 3.11 to 3.13, and {sys.executable} is older: make setup PYTHON=python3.12")
if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
    sys.exit("error: skytrain is built with a C++20 compiler, and there is none on the PATH: apt-get install g++")

FLAGS = ["-O3", "-std=c++20", "-fvisibility=hidden", "-Wall"]
# No result depends on these two: roots set no errno, comparisons raise no flag, so that loops are vectorised.
VECTORS = ["-fno-math-errno", "-fno-trapping-math"]
# Without OpenMP torch's headers turn at::parallel_for into a plain call on one thread. The library is torch's own,
# which is loaded first; Apple's compiler has none.
THREADS = ["-fopenmp"] if sys.platform == "linux" else []

extensions = [
    Extension(
        "skytrain._pack", ["csrc/pack_module.cpp", "csrc/pack.cpp"], extra_compile_args=FLAGS, depends=["csrc/pack.h"]
    )
]
commands = {}

try:
    import torch  # noqa: F401
except ImportError:
    print("torch is not importable here: skytrain._C is left out (use --no-build-isolation to build it)")
else:
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    extensions.append(
        CppExtension(
            "skytrain._C",
            ["csrc/torch_module.cpp", "csrc/attention.cpp", "csrc/host_adamw.cpp"],
            extra_compile_args=[*FLAGS, *VECTORS, *THREADS],
            extra_link_args=THREADS,
            depends=[
                *("csrc/attention.h", "csrc/attention_kernel.h"),
                *("csrc/host_adamw.h", "csrc/host_adamw_kernel.h", "csrc/host_adamw_lanes.h"),
            ],
        )
    )
    commands["build_ext"] = BuildExtension

setup(
    packages=[
        *("skytrain", "skytrain.data", "skytrain.plan", "skytrain.kernels"),
        *("skytrain.prep", "skytrain.prep.grade", "skytrain.eval", "skytrain.eval.tasks", "skytrain.report"),
    ],
    # PyPI has a package called `kernels` that transformers imports, so ours is only known as skytrain.kernels.
    package_dir={"skytrain": "skytrain", "skytrain.kernels": "kernels"},
    package_data={
        "skytrain.plan": ["*.toml"],
        "skytrain.prep": ["prompts/*.txt"],
        "skytrain.eval": ["prompts/*.txt"],
        "skytrain.report": ["published.toml", "page.*"],
    },
    ext_modules=extensions,
    cmdclass=commands,
)
