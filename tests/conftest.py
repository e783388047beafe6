"""Where there is no GPU, Triton kernels run in Triton's interpreter, which is chosen before any kernel is imported.
No test finds the process group of another."""

import os

import pytest
import torch

from skytrain import parallel

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def no_process_group():
    yield
    parallel.stop()
