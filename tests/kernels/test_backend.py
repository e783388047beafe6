"""What `kernels.backend` resolves to, and what it refuses."""

import pytest
import torch

from skytrain.kernels import backend

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_auto_follows_the_device(monkeypatch):
    monkeypatch.setattr(backend, "INTERPRETED", False)
    assert backend.resolve("auto", CPU) == "reference"
    assert backend.resolve("auto", GPU) == "triton"
    assert backend.resolve("reference", GPU) == "reference"


@pytest.mark.parametrize(
    ("name", "device", "interpreted", "reason"),
    [
        ("triton", CPU, False, "needs a GPU"),
        ("triton", GPU, True, "TRITON_INTERPRET"),
        ("cuda", CPU, False, "unknown"),
    ],
)
def test_what_cannot_run_is_refused_with_the_reason(monkeypatch, name, device, interpreted, reason):
    monkeypatch.setattr(backend, "INTERPRETED", interpreted)
    with pytest.raises(ValueError, match=reason):
        backend.resolve(name, device)


def test_what_is_not_installed_is_refused_even_by_auto(monkeypatch):
    monkeypatch.setattr(backend, "INTERPRETED", False)
    monkeypatch.setattr(backend, "triton", None)
    with pytest.raises(ValueError, match="triton is not installed"):
        backend.resolve("auto", GPU)
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="liger-kernel is not installed"):
        backend.resolve("liger", GPU)


def test_an_empty_grid_starts_nothing():
    backend.launch(None, (0,), None)
