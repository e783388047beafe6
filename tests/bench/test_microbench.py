"""The benchmark's harness: it refuses what is wrong, times in turns, and counts memory."""

import contenders
import microbench
import optimizers
import pytest
import timing
import torch
import verify
from cases import OPERATIONS, SMALL, Make
from contenders import Contender, Optimizer

CPU = torch.device("cpu")
ROPE = OPERATIONS["rope"]


def inputs_of(operation, dtype=torch.float32):
    return operation.inputs(Make(CPU, dtype, torch.Generator().manual_seed(0)), SMALL)


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["microbench.py", "--small", "--seconds", "0.01", *arguments])
    return microbench.main()


def skewed(inputs):
    q, k = ROPE.plain(inputs)
    return q * 1.0001, k


def unlike_in_backward(inputs):
    q, k = ROPE.plain(inputs)
    return q + (inputs["k"] - inputs["k"].detach()).sum() * 1e-3, k


def broken(inputs):
    raise TypeError("other arguments are expected")


@pytest.mark.parametrize(
    ("call", "reason"),
    [(skewed, "times plain torch's"), (unlike_in_backward, "times plain torch's"), (broken, "other arguments")],
)
@pytest.mark.parametrize("ours", [True, False])
def test_what_is_wrong_is_refused_and_not_timed(monkeypatch, capsys, call, reason, ours):
    found = [Contender("torch", ROPE.plain), Contender("candidate", call, ours)]
    monkeypatch.setattr(microbench, "contenders", lambda *_: iter(found))
    assert run(monkeypatch, "--case", "rope") == ours
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("candidate")]
    assert len(lines) == 1
    assert "refused" in lines[0]
    assert reason in lines[0]


def test_a_result_that_is_no_number_or_of_another_shape_has_an_infinite_error():
    right = (torch.ones(4, dtype=torch.float64),)
    plain = (torch.full((4,), 1.0 + 1e-6),)
    assert verify.error_ratio(plain, plain, right) == pytest.approx(1.0)
    assert verify.error_ratio((torch.full((4,), 1.0 + 1e-5),), plain, right) == pytest.approx(10, rel=0.2)
    assert verify.error_ratio((torch.tensor([1.0, 1.0, 1.0, torch.nan]),), plain, right) == float("inf")
    assert verify.error_ratio((torch.ones(3),), plain, right) == float("inf")


def test_the_heads_exact_results_are_those_of_autograd_in_fp64(monkeypatch):
    head = OPERATIONS["linear_cross_entropy"]
    monkeypatch.setattr(verify, "CHUNK", 100)
    wide = inputs_of(head, torch.float64)
    upstream = (torch.tensor(3.0, dtype=torch.float64),)
    expected = verify.results(head, head.plain, wide, upstream)
    for mine, right in zip(verify.exact(head, wide, upstream), expected, strict=True):
        torch.testing.assert_close(mine, right)


def test_a_contender_that_writes_over_its_inputs_does_not_disturb_the_others():
    swiglu = OPERATIONS["swiglu"]
    inputs = inputs_of(swiglu)
    before = inputs["gate"].clone()

    def clobbering(own):
        outputs = swiglu.plain({name: x * 1 for name, x in own.items()})
        own["gate"].detach().zero_()
        return outputs

    verify.results(swiglu, clobbering, inputs, (torch.ones_like(before),))
    assert torch.equal(inputs["gate"], before)


def test_functions_are_timed_in_turns():
    calls = []
    times = timing.time_rounds({name: lambda name=name: calls.append(name) for name in "ab"}, CPU, 0.0)
    assert calls == list("aabb") + list("ab") * timing.MIN_ROUNDS
    assert set(times) == {"a", "b"}
    assert timing.summary([5.0, 1.0, 2.0, 3.0, 4.0]) == timing.Times(3.0, pytest.approx(1.8), pytest.approx(4.2))


def test_peak_memory_is_that_of_all_allocations_at_once():
    x = torch.ones(1 << 18)

    def chunks():
        for _ in range(3):
            (x + 1).sum()
        return torch.cat((x, x))

    assert timing.peak_bytes(chunks, CPU) == pytest.approx(2 * x.nbytes, rel=0.01)
    assert timing.peak_bytes(lambda: (x + 1) * (x + 2), CPU) == pytest.approx(3 * x.nbytes, rel=0.01)


def test_an_optimizer_that_drifts_is_refused(monkeypatch, capsys):
    def start(weights):
        step, current = contenders._torch_adamw(weights, foreach=True)
        return lambda gradients: step([2.0 * gradient + 1e-4 for gradient in gradients]), current

    good = lambda weights: contenders._torch_adamw(weights, foreach=True)  # noqa: E731
    found = [
        Optimizer("right", good, torch.float32, 28, 1e-3, ours=True),
        Optimizer("wrong", start, torch.float32, 28, 1e-3, ours=True),
    ]
    monkeypatch.setattr(optimizers, "optimizers", lambda device: iter(found))
    assert run(monkeypatch, "--case", "adamw") == 1
    out = capsys.readouterr().out
    assert "wrong                        refused: drifts by" in out
    assert "right                        refused" not in out


def test_every_case_runs_small_and_says_what_is_left_out(monkeypatch, capsys):
    assert run(monkeypatch) == 0
    out = capsys.readouterr().out
    for operation in OPERATIONS:
        assert f"\n{operation}, " in out
    assert "skytrain triton              left out: " in out
    assert out.rstrip().splitlines()[-1].startswith("adamw")


def test_an_unknown_case_is_refused(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--case", "softmax")
    assert "unknown case softmax; known: head-cpu, " in capsys.readouterr().err
