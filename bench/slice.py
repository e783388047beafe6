"""The parts of a step of the 32B model, measured on one GPU at their real shapes, and the node's step put together.

    python bench/slice.py [--small] [--seconds 2]

Measured in bf16, over a row of 16,384 tokens in three documents with the spread of the plan's lengths:

layer       compiled as a run compiles it; a layer's time is (a stack of 3 - a stack of 1) / 2, since what a layer
            offloads comes back while the one above it computes, and over a layer alone there is none. With everything
            kept, and with the recipe's policy; full recomputation where the policy cannot be had
head        final norm, products, loss and both gradients; every token is a target
embedding   look-up, rotary tables, the table's gradient
adamw       the norm of the gradients and an update of one rank's share of all parameters; of as many tensors as fit,
            scaled by the number of parameters

bench/node.py puts them together. That, and the recipe's policy, need msgspec: where it is not installed the layer is
measured with full recomputation, and `python bench/node.py` puts the rows together elsewhere. --small runs all of it,
tiny, on a CPU and writes nothing: its numbers say nothing. Exits with status 1 where a part failed; the others are
written all the same.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import record
import torch
from cases import adamw, adamw_step
from microbench import free
from timing import Times, time_rounds
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from skytrain.attention import resolve_backend
from skytrain.kernels.backend import resolve
from skytrain.model import Backends, CausalLM, ModelConfig
from skytrain.rotary import Rope, rotary_tables

RECIPE = Path(__file__).parent.parent / "launch" / "recipes" / "sky_t1_32b.toml"
# Both as the plan has them, which cannot be asked where msgspec is not installed (there is a test).
MODEL = ModelConfig(
    "qwen2", 152_064, 5120, 27_648, 64, 40, 8, 128, 1e-6, 32_768, False, Rope("default", 1e6), True, False, False
)
LENGTHS = (2563, 4807, 9014)
"""Tokens a document: squares a token are 6,770, and 6,746 over the recipe's run."""
SMALL_MODEL = replace(
    MODEL, vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16,
)  # fmt: skip
SMALL_LENGTHS = (200, 348, 652)
SMALL_RECIPE = ["batch.max_tokens=1200", "batch.documents=48", "plan.documents=96", "plan.mean_tokens=400"]
RANKS, DEPTHS = 8, (1, 3)
FORMATS = ("fp32_8bit", "split_8bit")
KEPT, RECOMPUTED = "everything kept", "full recomputation"
HAS_PLAN = importlib.util.find_spec("msgspec") is not None

Row = dict[str, object]


class Slice:
    """What is measured, on what, and the rows it comes to."""

    def __init__(self, small: bool, seconds: float):
        gpu = torch.cuda.is_available() and not small
        self.small, self.seconds, self.device = small, seconds, torch.device("cuda" if gpu else "cpu")
        self.name = torch.cuda.get_device_name(self.device) if gpu else "CPU"
        # A CPU multiplies bf16 by way of fp32.
        self.model, lengths, self.dtype = (
            (MODEL, LENGTHS, torch.bfloat16) if gpu else ((SMALL_MODEL, SMALL_LENGTHS, torch.float32))
        )
        kernels, self.attention = resolve("auto", self.device), resolve_backend("auto", self.device)
        self.backends = Backends(self.attention, kernels, 2**29)
        self.rows: list[Row] = []
        self.failures: list[str] = []
        print(f"{self.name}: attention by {self.attention}, kernels by {kernels}")
        self.tokens, self.longest = sum(lengths), max(lengths)
        self.add("row", "tokens", self.tokens, "tokens")
        self.add("row", "squares", sum(n * n for n in lengths), "tokens^2")
        with torch.device(self.device):
            self.positions = torch.cat([torch.arange(n) for n in lengths])
            self.bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
            self.ids = torch.randint(self.model.vocab_size, (self.tokens,))

    def add(self, case: str, metric: str, value: float, unit: str) -> None:
        self.rows.append(_row(self.name, case, metric, value, unit))

    def time(self, case: str, runs: dict[str, Callable[[], object]]) -> dict[str, Times]:
        found = time_rounds(runs, self.device, self.seconds)
        for metric, times in found.items():
            for which in ("median", "p20", "p80"):
                self.add(case, f"{metric}_{which}", 1e3 * getattr(times, which), "ms")
            spread = f"{1e3 * times.p20:11.3f}{1e3 * times.p80:11.3f}"
            print(f"{case:44}{metric:28}{1e3 * times.median:11.3f} ms{spread}")
        return found

    def part(self, case: str, measure: Callable[[Slice, str], None]) -> bool:
        """Whether it could be measured."""
        failed = len(self.failures)
        try:
            measure(self, case)
        except Exception as problem:
            self.failures.append(f"{case}: {type(problem).__name__}: {str(problem).partition(chr(10))[0]}")
        free(self.device)  # after the except clause, whose traceback holds tensors
        return len(self.failures) == failed

    def network(self, layers: int) -> CausalLM:
        """On the meta device, to be filled where it is used."""
        with torch.device("meta"):
            return CausalLM(replace(self.model, num_hidden_layers=layers), self.backends)

    def fill(self, module: torch.nn.Module) -> None:
        module.to(self.dtype).to_empty(device=self.device)
        for weight in module.parameters():
            torch.nn.init.normal_(weight, std=0.02) if weight.ndim > 1 else torch.nn.init.ones_(weight)

    def stream(self) -> Tensor:
        return torch.randn(self.tokens, self.model.hidden_size, device=self.device, dtype=self.dtype).requires_grad_()


def _row(device: str, case: str, metric: str, value: float, unit: str) -> Row:
    return {"device": device, "case": case, "metric": metric, "value": f"{value:.6g}", "unit": unit}


# The parts


def wrap(network: CausalLM, how: str, tokens: int) -> None:
    """Recomputation and compile, a layer at a time, as activations.apply and parallel.shard do it."""
    compiled = functools.partial(torch.compile, dynamic=True)
    if how not in (KEPT, RECOMPUTED):
        from skytrain import activations, config

        policies = activations.policies(config.load(RECIPE).activations, len(network.model.layers))
        activations.apply(network, policies, tokens=tokens, compile=compiled)
        return
    for layer in network.model.layers:
        forward = layer.forward
        if how == RECOMPUTED:
            forward = functools.partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)
        layer.forward = compiled(forward)


def measure_layer(bench: Slice, case: str) -> None:
    network = bench.network(max(DEPTHS))
    layers = network.model.layers
    bench.fill(layers)
    how = case.partition(", ")[2]
    wrap(network, how, bench.tokens)
    x = bench.stream()
    upstream = torch.randn_like(x)
    tables = rotary_tables(bench.model.rope, bench.model.head_dim, bench.positions)

    def forward(depth: int) -> Tensor:
        out = x
        for layer in layers[:depth]:
            out = layer(out, *tables, bench.bounds, bench.longest)
        return out

    def both(depth: int) -> object:
        return torch.autograd.grad(forward(depth), [x, *layers[:depth].parameters()], upstream)

    def a_layer(metric: str, run: Callable[[int], object]) -> None:
        names = [f"{metric}_of_{depth}" for depth in DEPTHS]
        times = bench.time(case, {name: functools.partial(run, depth) for name, depth in zip(names, DEPTHS)})
        few, many = (1e3 * times[name].median for name in names)
        bench.add(case, metric, (many - few) / (DEPTHS[1] - DEPTHS[0]), "ms")
        print(f"{case:44}{metric + ' of a layer':28}{(many - few) / (DEPTHS[1] - DEPTHS[0]):11.3f} ms")

    a_layer("forward_backward", both)
    # The same operations whatever is kept; and a forward without its backward would not give back host memory.
    if how == KEPT:
        a_layer("forward", forward)


def measure_head(bench: Slice, case: str) -> None:
    network = bench.network(1)
    norm, head, x = network.model.norm, network.lm_head, bench.stream()
    bench.fill(norm)
    bench.fill(head)

    def forward() -> Tensor:
        return head(norm(x), bench.ids, 1 / bench.tokens, None)

    weights = [x, norm.weight, head.weight]
    runs = {"forward": forward, "forward_backward": lambda: torch.autograd.grad(forward(), weights)}
    bench.time(case, runs)


def measure_embedding(bench: Slice, case: str) -> None:
    embed = bench.network(1).model.embed_tokens
    bench.fill(embed)
    upstream = bench.stream().detach()

    def both() -> object:
        rotary_tables(bench.model.rope, bench.model.head_dim, bench.positions)
        return torch.autograd.grad(embed(bench.ids), embed.weight, upstream)

    bench.time(case, {"forward_backward": both})


def shard_shapes(bench: Slice) -> list[tuple[int, ...]]:
    """Of the first rank's shards of all parameters: FSDP2 cuts the rows into even blocks."""
    shapes = [tuple(p.shape) for p in bench.network(bench.model.num_hidden_layers).parameters()]
    return [(-(-rows // RANKS), *rest) for rows, *rest in shapes]


def fitting(bench: Slice, shapes: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """As many of them, from the first, as leave a tenth of the free memory."""
    if bench.device.type == "cpu":
        return shapes
    # fp32_8bit's 10.1 bytes a parameter, the larger of the two.
    left = 0.9 * torch.cuda.mem_get_info(bench.device)[0] / 10.1
    count = next((i for i, _ in enumerate(shapes) if sum(map(math.prod, shapes[: i + 1])) > left), len(shapes))
    return shapes[:count]


def measure_adamw(bench: Slice, case: str) -> None:
    format, shapes = case.partition(" ")[2], shard_shapes(bench)
    share, taken = sum(map(math.prod, shapes)), fitting(bench, shapes)
    dtype = torch.bfloat16 if format == "split_8bit" else torch.float32
    # Weights in their own dtype from the start: beside a copy in fp32 fewer would fit.
    weights = [torch.full(shape, 0.02, dtype=dtype, device=bench.device) for shape in taken]
    gradients = [torch.full(shape, 1e-3, dtype=dtype, device=bench.device) for shape in taken]
    optimizer = adamw(format, weights, bench.backends.kernels)

    def step() -> None:
        torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, 2.0, dtype=torch.float32)))
        adamw_step(optimizer, gradients)

    count = sum(map(math.prod, taken))
    times = bench.time(case, {"step": step})["step"]
    bench.add(case, "parameters_measured", count, "parameters")
    bench.add(case, "parameters_of_a_rank", share, "parameters")
    bench.add(case, "step_of_a_rank", 1e3 * times.median * share / count, "ms")
    if count < share:
        print(f"{case}: {count / 1e9:.3g} of {share / 1e9:.3g} billion parameters fit; scaled by their number")


# The whole


def recipe_policy() -> str:
    """What the recipe's layers hold, in words."""
    from skytrain import activations, config
    from skytrain.plan.forecast import told

    return told(tuple(activations.policies(config.load(RECIPE).activations, MODEL.num_hidden_layers)))


def measure(bench: Slice) -> None:
    print(f"{'':72}{'median':>11}{'p20':>14}{'p80':>11}")
    bench.part(f"layer, {KEPT}", measure_layer)
    layer = f"layer, {recipe_policy()}" if HAS_PLAN else ""
    if not layer or not bench.part(layer, measure_layer):
        bench.part(f"layer, {RECOMPUTED}", measure_layer)
    bench.part("head", measure_head)
    bench.part("embedding", measure_embedding)
    for format in FORMATS:
        bench.part(f"adamw {format}", measure_adamw)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="small tensors on a CPU, no results written")
    parser.add_argument("--seconds", type=float, default=2.0, help="for the rounds of a part")
    arguments = parser.parse_args()
    if not arguments.small and not torch.cuda.is_available():
        parser.error("no CUDA device; --small runs on a CPU")
    bench = Slice(arguments.small, arguments.seconds)
    measure(bench)
    if HAS_PLAN:
        import node

        bench.rows += node.report(bench.rows, bench.model, SMALL_RECIPE if bench.small else [])
    else:
        print("msgspec is not installed: python bench/node.py puts the rows together where it is")
    if not bench.small:
        print(record.append("slice", bench.rows))
    for failure in bench.failures:
        print(f"failed: {failure}")
    return bool(bench.failures)


if __name__ == "__main__":
    sys.exit(main())
