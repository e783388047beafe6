"""Where there is no GPU, Triton kernels run in Triton's interpreter, which is chosen before any kernel is imported.
No test finds the process group of another, and Ctrl-C is answered in tests however these were started."""

import gc
import os
import signal
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Not above: it imports the kernels, which look at the variable.
from skytrain import parallel

# A shell's background jobs ignore the signal, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Files that take over 20 seconds, the longest first; where a new one stands matters little.
LONG = [
    "test_vllm.py",
    "bench/test_throughput.py",
    "test_float8.py",
    "test_activations.py",
    "test_trainer.py",
    "launch/test_torchrun.py",
    "test_watch.py",
    "report/test_page.py",
    "eval/test_tasks.py",
    "prep/test_generate.py",
    "eval/test_run.py",
    "test_verify.py",
    "test_resumption.py",
    "test_parallel.py",
    "plan/test_memory.py",
    "prep/test_recipe.py",
    "kernels/test_linear_cross_entropy.py",
    "kernels/test_adamw.py",
    "prep/test_workers.py",
    "prep/test_grade_code_contained.py",
    "test_train_command.py",
    "plan/test_command.py",
    "launch/test_demo.py",
    "test_doctor.py",
    "test_fuzz.py",
    "prep/test_grade_math.py",
    "prep/test_grade_code.py",
    "launch/test_readme_plan.py",
    "kernels/test_rope.py",
    "test_model.py",
    "bench/test_slice.py",
    "test_aot.py",
    "kernels/test_rms_norm.py",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make test` gives each worker whole files: a long one that began last would leave the other without work."""
    place = {Path(__file__).parent / name: index for index, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path, len(LONG)))


def pytest_collection_finish() -> None:
    """A run collects garbage before its first step: a third of a second among all that torch and transformers keep."""
    gc.freeze()


@pytest.fixture(autouse=True)
def no_process_group():
    yield
    parallel.stop()
