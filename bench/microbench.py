"""Each fused operation against plain torch, torch compiled and fused, and Liger: first compared, then timed.

    python bench/microbench.py [--case NAME]... [--small] [--seconds 2]

On a GPU at the shapes of a 32B model and, for the head, the shape of Liger's published figures, in bf16, each time
with a cold L2 cache; on a CPU the head in fp32, and with --small (for tests) every operation on small tensors.

No contender is timed whose outputs and gradients have not just been compared with fp64. `error` is its largest error
in units of plain torch's: ours may have 2; a peer up to 50, since bf16 sums are worse without being wrong. GB/s is
over the fewest bytes (each input and output once), so it is a speed and not a traffic. % is of the machine's own copy
or bf16 (on a CPU: fp32) matmul rate, measured first. Memory is the peak above the inputs.
Exits with status 1 where something of ours is refused.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Iterator

import record
import torch
from cases import LIGER_HEAD, MODELS, OPERATIONS, SMALL, Inputs, Make, Operation, Shape, backward, with_gradients
from contenders import Absent, Contender, contenders
from optimizers import run_adamw
from timing import Times, machine_rates, peak_bytes, time_rounds
from torch import Tensor
from verify import error_ratio, exact, results

LIMIT, PEER_LIMIT = 2.0, 50.0
# The head's logits are 125 times its hidden states, as in a small model: memory is what it is about.
CPU_HEAD: Shape = {"rows": 512, "hidden": 256, "vocabulary": 32_000, "chunk_bytes": 15 << 20}


class Bench:
    def __init__(self, device: torch.device, small: bool, seconds: float):
        self.device, self.small, self.seconds = device, small, seconds
        self.rates = machine_rates(device, small)
        self.rows: list[dict[str, object]] = []
        self.failures: list[str] = []
        self.name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        copy, matmul = self.rates.copy / 1e9, self.rates.matmul / 1e12
        print(f"{self.name}: copies {copy:.0f} GB/s, multiplies {matmul:.2f} TFLOP/s")
        self.add("machine", "copy", "bandwidth", copy, "GB/s")
        self.add("machine", "matmul", "speed", matmul, "TFLOP/s")

    def add(self, case: str, contender: str, metric: str, value: float, unit: str) -> None:
        row = {"device": self.name, "threads": torch.get_num_threads(), "case": case, "contender": contender}
        self.rows.append(row | {"metric": metric, "value": f"{value:.6g}", "unit": unit})

    def add_times(self, case: str, contender: str, metric: str, times: Times) -> None:
        for which in ("median", "p20", "p80"):
            self.add(case, contender, f"{metric}_{which}", 1e3 * getattr(times, which), "ms")

    def refuse(self, case: str, name: str, reason: str, ours: bool) -> None:
        print(f"{name:28} refused: {reason}")
        if ours:
            self.failures.append(f"{case}: {name}: {reason}")


def run_operation(bench: Bench, operation: Operation, shape: Shape, dtype: torch.dtype, label: str) -> None:
    generator = torch.Generator(bench.device).manual_seed(0)
    inputs = operation.inputs(Make(bench.device, dtype, generator), shape)
    print(f"\n{label}")
    accepted = verified(bench, operation, inputs, label)
    free(bench.device)
    fewest = [0, 0]
    forward, both, peaks = {}, {}, {}
    for contender, _ in accepted:
        own = {name: x.clone() if isinstance(x, Tensor) else x for name, x in inputs.items()}
        own = with_gradients(operation, contender.prepare(own))
        with torch.no_grad():
            outputs = contender.call(own)
        fewest = [operation.forward_bytes(inputs, outputs), operation.backward_bytes(inputs, outputs)]
        upstream = tuple(torch.ones_like(output) for output in outputs)
        forward[contender.name] = lambda contender=contender, own=own: contender.call(own)
        both[contender.name] = lambda contender=contender, own=own, upstream=upstream: backward(
            operation, own, contender.call(own), upstream
        )
        peaks[contender.name] = peak_bytes(both[contender.name], bench.device)
    if operation.flops is not None:
        both |= bare_matmuls(inputs)
        forward = {}  # the head's forward makes the gradients too
    forward_times = time_rounds(forward, bench.device, bench.seconds / 2) if forward else {}
    times = time_rounds(both, bench.device, bench.seconds)
    report(bench, operation, shape, label, fewest, (forward_times, times), peaks, dict(accepted_errors(accepted)))


def accepted_errors(accepted: list[tuple[Contender, float]]) -> Iterator[tuple[str, float]]:
    return ((contender.name, error) for contender, error in accepted)


def verified(bench: Bench, operation: Operation, inputs: Inputs, label: str) -> list[tuple[Contender, float]]:
    """The contenders that are right, with their errors in units of plain torch's."""
    with torch.no_grad():
        outputs = operation.plain(inputs)
    generator = torch.Generator(bench.device).manual_seed(1)
    make = Make(bench.device, outputs[0].dtype, generator)
    scalar = operation.flops is not None
    upstream = tuple(torch.ones_like(x) if scalar else make.normal(*x.shape) for x in outputs)
    del outputs
    right = exact(operation, inputs, upstream)
    plain = results(operation, operation.plain, inputs, upstream)
    accepted = []
    for contender in contenders(operation, bench.device):
        if isinstance(contender, Absent):
            print(f"{contender.name:28} left out: {contender.reason}")
            continue
        try:
            prepared = contender.prepare
            mine = results(operation, lambda own, c=contender, p=prepared: c.call(p(own)), inputs, upstream)
            error = error_ratio(mine, plain, right)
            del mine
        except Exception as problem:  # a peer of another version; ours is a failure
            bench.refuse(label, contender.name, f"{type(problem).__name__}: {problem}", contender.ours)
            continue
        free(bench.device)
        if error <= (LIMIT if contender.ours else PEER_LIMIT):
            accepted.append((contender, error))
        else:
            bench.refuse(label, contender.name, f"error {error:.3g} times plain torch's", contender.ours)
    return accepted


MATMULS = "its three matmuls"


def bare_matmuls(inputs: Inputs) -> dict[str, object]:
    """What the head cannot do without: logits, and the products with their gradient, in the operands' dtype."""
    hidden, weight = inputs["hidden"].detach(), inputs["weight"].detach()
    d_logits = torch.empty(hidden.shape[0], weight.shape[0], dtype=hidden.dtype, device=hidden.device).normal_()
    logits, d_hidden, d_weight = torch.empty_like(d_logits), torch.empty_like(hidden), torch.empty_like(weight)

    def run() -> None:
        torch.mm(hidden, weight.t(), out=logits)
        torch.mm(d_logits, weight, out=d_hidden)
        torch.mm(d_logits.t(), hidden, out=d_weight)

    return {MATMULS: run}


def report(bench, operation, shape, label, fewest, times, peaks, errors) -> None:
    forward, both = times
    flops = operation.flops and operation.flops(shape)
    rate = bench.rates.matmul if flops else bench.rates.copy
    speed, divisor = ("TFLOP/s", 1e12) if flops else ("GB/s", 1e9)
    heading = f"{'':28}{'forward':>11}{'and backward':>14}{'p20':>10}{'p80':>10}"
    print(f"{heading}{speed:>10}{'%':>7}{'peak MB':>11}{'error':>8}")
    for name, time in both.items():
        reached = (flops or sum(fewest)) / time.median
        bench.add_times(label, name, "forward_backward", time)
        bench.add(label, name, "speed", reached / divisor, speed)
        bench.add(label, name, "percent_of_machine", 100 * reached / rate, "%")
        if name in forward:
            bench.add_times(label, name, "forward", forward[name])
            bench.add(label, name, "forward_speed", fewest[0] / forward[name].median / 1e9, "GB/s")
        if name in peaks:
            bench.add(label, name, "peak_memory", peaks[name], "bytes")
            bench.add(label, name, "error", errors[name], "of plain torch's")
        alone = f"{1e3 * forward[name].median:8.3f} ms" if name in forward else f"{'':11}"
        print(
            f"{name:28}{alone}{1e3 * time.median:11.3f} ms{1e3 * time.p20:10.3f}{1e3 * time.p80:10.3f}"
            f"{reached / divisor:10.2f}{100 * reached / rate:7.1f}"
            + (f"{peaks[name] / 1e6:11.2f}{errors[name]:8.2f}" if name in peaks else "")
        )
    if flops:
        for name in peaks:
            ratio = both[name].median / both[MATMULS].median
            bench.add(label, name, "over_its_matmuls", ratio, "")
            print(f"{name:28}{ratio:8.3f} times its three matmuls")


def summary(bench: Bench) -> None:
    """A line a case: the median of ours (the kernel; on a CPU the reference) and of each other, over ours."""
    values = {(row["case"], row["contender"], row["metric"]): float(str(row["value"])) for row in bench.rows}
    medians: dict[str, dict[str, float]] = {}
    for (case, contender, metric), value in values.items():
        if metric in ("forward_backward_median", "step_median"):
            medians.setdefault(case, {})[contender] = value
    print(f"\n{bench.name}, bf16" if bench.device.type == "cuda" else f"\n{bench.name}")
    for case, found in medians.items():
        ours = [name for name in found if name.startswith("skytrain")]
        kernels = [name for name in ours if name.startswith("skytrain triton")] or ours
        for name in kernels:
            percent = values[case, name, "percent_of_machine"]
            others = "  ".join(f"{other} {found[other] / found[name]:.2f}x" for other in found if other not in ours)
            print(f"{case}: {name} {found[name]:.3f} ms, {percent:.0f}% of the machine's rate; {others}")


def free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def cases(gpu: bool, small: bool) -> dict[str, list[tuple[str, Shape, torch.dtype]]]:
    """Case -> (operation, shape, dtype) of what it runs."""
    if gpu and not small:
        dtype, large = torch.bfloat16, MODELS["32B"]
        found = {name: [(name, large, dtype)] for name in OPERATIONS if name != "linear_cross_entropy"}
        head = [("linear_cross_entropy", shape, dtype) for shape in (LIGER_HEAD, large)]
        return found | {"linear_cross_entropy": head}
    head = {"head-cpu": [("linear_cross_entropy", SMALL if small else CPU_HEAD, torch.float32)]}
    return head | {name: [(name, SMALL, torch.float32)] for name in OPERATIONS if name != "linear_cross_entropy"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--case", action="append", help="only this one; may be given again")
    parser.add_argument("--small", action="store_true", help="small tensors, no results written")
    parser.add_argument("--seconds", type=float, default=2.0, help="for the rounds of a case")
    arguments = parser.parse_args()
    gpu = torch.cuda.is_available()
    known = cases(gpu, arguments.small)
    wanted = arguments.case or [*known, "adamw"]
    if unknown := set(wanted) - set(known) - {"adamw"}:
        parser.error(f"unknown case {', '.join(sorted(unknown))}; known: {', '.join([*known, 'adamw'])}")
    bench = Bench(torch.device("cuda" if gpu else "cpu"), arguments.small, arguments.seconds)
    for case in wanted:
        for name, shape, dtype in known.get(case, ()):
            operation = OPERATIONS[name]
            size = " x ".join(str(shape[key]) for key in operation.dimensions)
            run_operation(bench, operation, shape, dtype, f"{name}, {size}, {str(dtype).removeprefix('torch.')}")
            free(bench.device)
        if case == "adamw":
            run_adamw(bench)
    summary(bench)
    if not arguments.small:
        print(record.append("kernels", bench.rows))
    for failure in bench.failures:
        print(f"failed: {failure}")
    return bool(bench.failures)


if __name__ == "__main__":
    sys.exit(main())
