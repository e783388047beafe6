"""What servers of a model can answer: a roofline of decoding, times the part of it that an engine is taken to reach.

A replica is `tensor_parallel` GPUs (t) that hold the weights and the cache between them. While it decodes, B answers
grow by a token each step, behind a context of C tokens on average:

bytes of a step   all weights of products once, and the keys and values of B contexts
FLOPs of a step   2 for each weight of a product and token, and attention over the context
seconds           the longer of bytes / (t x memory rate) and FLOPs / (t x rate of products)
                  (roofline: Williams et al., CACM 52(4), 2009; for decoding: Pope et al., arXiv 2211.05102, section 3)

B is what the cache's memory holds, or fewer: `max_sequences`, or what the client has in flight. Lengths of answers
spread (`SPREAD`), and a long one decodes for longer, so a step's mean context is the prompt and E[c^2] / (2 E[c]) =
c exp(sigma^2) / 2 tokens of the answer. A prompt is read at the rate of products. Rates are the parts of the peaks that
work of a large model's size reaches (hardware.toml); of the roofline at these rates a server reaches
`efficiency.serving`, which is ASSUMED, as its source there says. Not counted: the exchange between the GPUs of a
replica, and the end of a stage, where few answers are left to decode together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from skytrain.errors import UserError
from skytrain.plan.hardware import GIB, Device
from skytrain.plan.known import SPREAD, Served

MEMORY_PART = 0.9
"""Of a GPU's memory that the server takes: vLLM's --gpu-memory-utilization."""
WORKSPACE_GIB = 2.0
"""Of that, on each GPU, for activations and CUDA graphs (assumed)."""


@dataclass(frozen=True)
class Pool:
    """GPUs that serve one model. in_flight: requests that the client has out at a time, over all replicas."""

    device: Device
    model: Served
    gpus: int
    tensor_parallel: int
    max_sequences: int
    in_flight: int

    @property
    def replicas(self) -> int:
        return self.gpus // self.tensor_parallel

    @property
    def cache_tokens(self) -> int:
        """That a replica's memory holds; below 1 where the weights alone do not fit."""
        of_gpu = self.device.memory * MEMORY_PART - WORKSPACE_GIB * GIB
        return int((of_gpu * self.tensor_parallel - self.model.weight_bytes) / self.model.cache_bytes)

    def check(self) -> None:
        """UserError for GPUs that cannot be shared so, and for a model that they do not hold."""
        d, t = self.device, self.tensor_parallel
        if t < 1 or self.gpus < t or self.gpus % t:
            raise UserError(f"plan.tensor_parallel = {t}: does not divide the number of GPUs, {self.gpus}")
        if self.model.kv_heads % t:
            raise UserError(
                f"plan.tensor_parallel = {t}: does not divide {self.model.name}'s {self.model.kv_heads} key-value heads"
            )
        if d.dtype != "bfloat16":
            raise UserError(f"gpu {d.id!r}: its rates are of {d.dtype}, and servers are planned in bf16; name a GPU")
        if not d.efficiency.serving:
            raise UserError(f"gpu {d.id!r}: its row has no efficiency.serving; add it, from 0 to 1, to the row")


@dataclass(frozen=True)
class Serving:
    """hours: of all requests. tokens_per_s: completion tokens over all replicas. batch: answers that a replica decodes
    together. bound: memory or products, what a step of decoding waits for."""

    hours: float
    tokens_per_s: float
    batch: int
    bound: str


def plan_serving(pool: Pool, requests: int, prompt_tokens: float, completion_tokens: float) -> Serving:
    """prompt_tokens, completion_tokens: means. UserError as `Pool.check`, and where not one answer fits."""
    pool.check()
    model, device, t = pool.model, pool.device, pool.tensor_parallel
    context = prompt_tokens + completion_tokens * math.exp(SPREAD**2) / 2
    shared = min(pool.in_flight, requests) / pool.replicas
    batch = int(min(pool.cache_tokens / context, pool.max_sequences, max(1, shared)))
    if batch < 1:
        raise UserError(
            f"{model.name} on {t} x {device.id}: no room for the cache of one answer, {context:,.0f} tokens, beside "
            "the weights; raise plan.tensor_parallel, or name GPUs with more memory"
        )
    memory = (2 * model.products + batch * context * model.cache_bytes) / (t * device.memory_rate)
    products = batch * model.token_flops(context) / (t * device.matmul_rate)
    reading = prompt_tokens * model.token_flops(prompt_tokens / 2) / (t * device.matmul_rate)
    answer = completion_tokens * max(memory, products) / batch + reading
    seconds = requests / pool.replicas * answer / device.efficiency.serving
    bound = "memory" if memory >= products else "products"
    return Serving(seconds / 3600, requests * completion_tokens / seconds, batch, bound)
