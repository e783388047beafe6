"""launch/train.py, in which rank 1 dies by kill -9 in its third step.

When torchrun starts the ranks again, rank 0 comes late, so that rank 1 finds what its forerunners left in the store.
"""

import os
import runpy
import signal
import sys
import time
from pathlib import Path

from skytrain import trainer

if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "1":
    step, calls = trainer.train_step, []

    def deadly(*args):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*args)

    trainer.train_step = deadly
elif os.environ["RANK"] == "0":
    time.sleep(3.0 * int(os.environ["TORCHELASTIC_RESTART_COUNT"]))

script = Path(__file__).resolve().parents[2] / "launch" / "train.py"
sys.argv[0] = str(script)
runpy.run_path(str(script), run_name="__main__")
