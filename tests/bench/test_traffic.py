"""The count of bytes: exact on small kernels, and within its limits for every operation."""

from dataclasses import replace

import bad_kernels
import pytest
import torch
import traffic
from cases import OPERATIONS

from skytrain.kernels import backend
from skytrain.kernels.backend import jit, tl

pytestmark = pytest.mark.skipif(not backend.INTERPRETED, reason="counts in Triton's interpreter")


@jit
def add_column(x, column, y, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, place = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    tile = row[:, None] * COLUMNS + place[None, :]
    same = tl.load(column + row[:, None] + tl.zeros([ROWS, COLUMNS], tl.int32))
    tl.store(y + tile, tl.load(x + tile) + same)


@jit
def count_up(x):
    tl.atomic_add(x, 1.0)


def test_masked_lanes_are_not_counted_and_large_grids_are_sampled(monkeypatch):
    x, y = torch.zeros(1000, dtype=torch.float16), torch.zeros(1000, dtype=torch.float16)
    with traffic.counted() as count:
        backend.launch(bad_kernels.copy, (4,), x, y, 1000, BLOCK=256)
    assert (dict(count.loaded), dict(count.stored)) == ({"copy": 2000}, {"copy": 2000})
    monkeypatch.setattr(traffic, "PROGRAMS", 5)
    x, y = torch.ones(5120), torch.zeros(5120)
    with traffic.counted() as count:
        backend.launch(bad_kernels.copy, (20,), x, y, 5120, BLOCK=256)
    assert count.total == 2 * 4 * 5120
    assert y.sum() == 5 * 256
    backend.launch(bad_kernels.copy, (20,), x, y, 5120, BLOCK=256)
    assert y.sum() == 5120, "sampled after the count"


def test_lanes_that_share_an_address_load_it_once():
    x, column = torch.ones(8, 64), torch.ones(8)
    with traffic.counted() as count:
        backend.launch(add_column, (1,), x, column, torch.empty_like(x), ROWS=8, COLUMNS=64)
    assert count.loaded["add_column"] == x.nbytes + column.nbytes


def test_torch_operations_are_counted_but_not_views():
    x = torch.ones(8, 64)
    with traffic.counted() as count:
        x.t().contiguous()
        torch.empty(100)
        x.view(64, 8)[3]
    assert (count.loaded["torch"], count.stored["torch"]) == (x.nbytes, x.nbytes)


def test_atomics_are_refused():
    with pytest.raises(Exception, match="atomics are not counted"), traffic.counted():
        backend.launch(count_up, (1,), torch.zeros(1))


def test_every_operation_is_within_its_limit():
    results = list(traffic.results(small=True))
    assert {result.name.split()[0].rstrip(",") for result in results} >= set(OPERATIONS) - {"linear_cross_entropy"}
    over = [f"{result.name}: {result.ratio:.3f}" for result in results if not 0.99 < result.ratio <= result.limit]
    assert not over, over


def test_an_operation_that_copies_its_input_first_is_over_and_said_to_be(monkeypatch, capsys):
    swiglu = OPERATIONS["swiglu"]
    shape = {"rows": 64, "inner": 128}

    def wasteful(inputs, name):
        return swiglu.ours(inputs | {"gate": inputs["gate"].t().contiguous().t()}, name)

    (good, _), (bad, _) = (traffic.measure(operation, shape) for operation in (swiglu, replace(swiglu, ours=wasteful)))
    assert good.ratio <= good.limit < bad.ratio
    monkeypatch.setattr("sys.argv", ["traffic.py", "--small"])
    for results, status in (([good], 0), ([good, bad], 1)):
        monkeypatch.setattr(traffic, "results", lambda small: results)
        assert traffic.main() == status
    assert "over" in capsys.readouterr().out
