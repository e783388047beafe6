"""The house: where things are, which way the arrows point, and what an import may touch."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_kernels_are_one_package_under_skytrain():
    import skytrain.kernels

    assert not (ROOT / "skytrain" / "kernels").exists(), "it would silently win over kernels/"
    assert Path(skytrain.kernels.__file__).parent == ROOT / "kernels"


def test_the_name_kernels_is_left_to_the_package_index():
    """With the root on sys.path ./kernels would shadow the `kernels` package that transformers looks for."""
    assert str(ROOT) not in sys.path
    found = importlib.util.find_spec("kernels")
    assert found is None or ROOT not in Path(found.origin or "").parents


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def test_arrows_point_one_way():
    for path in files("skytrain", "kernels"):
        for name in imports(path):
            # The other side of `skytrain verify export`; what `skytrain doctor` tries in a process of its own.
            if name.startswith("transformers") and path.name in {"verify.py", "doctor_probe.py"}:
                continue
            assert name.split(".")[0] not in {"launch", "bench", "tests", "transformers"}, f"{path} imports {name}"
    for path in files("kernels"):
        for name in imports(path):
            ours = name.startswith("skytrain")
            allowed = ("skytrain.kernels", "skytrain._C", "skytrain.errors")
            assert not ours or name == "skytrain" or name.startswith(allowed), f"{path} imports {name}"
    for path in files("skytrain/data", "skytrain/prep", "skytrain/eval", "skytrain/report"):
        assert not any(name.split(".")[0] == "torch" for name in imports(path)), path


@pytest.mark.parametrize(
    "module",
    ["skytrain.data", "skytrain.prep", "skytrain.eval", "skytrain.eval.tasks", "skytrain.report", "skytrain.cli"],
)
def test_torch_stays_out_of_what_runs_beside_a_server(module):
    code = (
        f"import importlib, pkgutil, sys, {module} as m\n"
        "for info in pkgutil.iter_modules(getattr(m, '__path__', [])):\n"
        "    importlib.import_module(f'{m.__name__}.{info.name}')\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_files_stay_readable():
    for path in files("skytrain", "kernels", "launch", "bench"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path
