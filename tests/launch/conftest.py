"""The doors import their neighbours as scripts do, by a bare name."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "launch"))
