"""Float8 products in the decoder layers, through torchao: the linear layers are exchanged for its own.

Operands are cast to float8 when they are needed, by a scale found from their own largest value (of a tensor, or of each
row), and what is saved for backward stays in the compute dtype; sums and results are wide. Embedding, norms, attention
and head stay as they are. On a CPU the casts are real and the product is fp32's: slow, and right to compare with.
"""

from __future__ import annotations

import dataclasses
import logging

import torch

from skytrain.config import Train
from skytrain.config_rules import FLOAT8_TOKENS
from skytrain.errors import UserError
from skytrain.model import CausalLM, Linear, ModelConfig

CAPABILITY = {"tensorwise": (8, 9), "rowwise": (9, 0)}
"""Of a CUDA device, at least: of cuBLAS's and of CUTLASS's kernels behind torch._scaled_mm."""


def check(train: Train, model: ModelConfig, device: torch.device) -> None:
    """`UserError` where train.float8 cannot run."""
    if train.float8 is None:
        return
    where = f"train.float8 = {train.float8!r}"
    _torchao(where)
    widths = {
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_attention_heads * head_dim": model.num_attention_heads * model.head_dim,
        "num_key_value_heads * head_dim": model.num_key_value_heads * model.head_dim,
    }
    for name, width in widths.items():
        if width % FLOAT8_TOKENS:
            raise UserError(f"{where}: {name} is {width} in this model, no multiple of {FLOAT8_TOKENS}; take it out")
    if device.type != "cuda":
        return
    needed, there = CAPABILITY[train.float8], torch.cuda.get_device_capability(device)
    if there < needed:
        raise UserError(
            f"{where}: needs a GPU of sm_{needed[0]}{needed[1]} or newer, and this one is sm_{there[0]}{there[1]}; "
            "take it out"
        )
    if train.dtype != "bfloat16" or not train.compile:
        raise UserError(
            f"{where}: on a GPU it needs train.dtype = 'bfloat16' and train.compile = true, without which the casts "
            "take longer than the products save"
        )


def convert(model: CausalLM, recipe: str | None, *, emulate: bool) -> None:
    """Exchanges the linear layers below the head, whose parameters and names stay. None: leaves them.

    Before activations.apply and fully_shard. emulate: multiplies in fp32, where there are no float8 products.
    """
    if recipe is None:
        return
    torchao = _torchao(f"train.float8 = {recipe!r}")
    options = dataclasses.replace(torchao.Float8LinearConfig.from_recipe_name(recipe), emulate=emulate)
    torchao.convert_to_float8_training(
        model.model.layers, config=options, module_filter_fn=lambda module, _name: isinstance(module, Linear)
    )


def _torchao(where: str):
    # It warns of extensions of its own that it could not load (none is needed here), and of its use of torch.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        import torchao.float8
    except ImportError as error:
        raise UserError(f"{where}: needs torchao ({error}); pip install 'skytrain[float8]', or take it out") from None
    return torchao.float8
