"""Where there is no GPU, Triton kernels run in Triton's interpreter, which is chosen before any kernel is imported.
No test finds the process group of another, and Ctrl-C is answered in tests however these were started."""

import gc
import os
import signal

import pytest
import torch

from skytrain import parallel

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# A shell's background jobs ignore the signal, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """A run collects garbage before its first step: a third of a second among all that torch and transformers keep."""
    gc.freeze()


@pytest.fixture(autouse=True)
def no_process_group():
    yield
    parallel.stop()
