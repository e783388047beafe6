"""The server that tests fork their processes from: a session pays once for its imports, and not each process.

It has imported what ranks, teachers and the command need, and run nothing; one server serves all of them, since
multiprocessing has one a process.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

# torch._dynamo takes seconds, and fully_shard imports it at its first use. So do transformers' models, which come with
# every test file that writes a tiny model. What is not there to be imported is passed over.
PRELOADED = [
    "numpy",
    "safetensors.torch",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.qwen3.modeling_qwen3",
    "torch",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "aiohttp.web",
    "skytrain.export_command",
    "skytrain.trainer",
    "skytrain.verify_worker",
    "skytrain.prep.generate",
    "skytrain.prep.recipe",
]


def context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context
