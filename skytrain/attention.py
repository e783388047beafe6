"""Packed causal attention: one function over a row of documents, one custom op, several back ends.

A row packs documents without padding; `cu_seqlens` holds their bounds, and a token attends to itself and to earlier
tokens of its own document. Whatever runs it, the same op is seen by autograd, by torch.compile and by a trace: it
saves q, k, v, out and logsumexp, and is opaque, so that no graph depends on the documents' lengths.

| back end | runs on | with |
|---|---|---|
| cpu | CPU | skytrain._C: fp32 inside, linear in the number of documents |
| reference | CPU, GPU | the formula, a document at a time: the oracle of the tests; fp64 too |
| varlen | GPU | torch's own variable-length attention |
| flash_attn | GPU, sm_80 or newer | the flash-attn package, 2.7 or newer |
| flash_attn_4 | GPU, sm_90 or newer | the flash-attn-4 package |

Gradients on a GPU are reproducible bit for bit under torch.use_deterministic_algorithms(True), at some cost.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import itertools
import math

import torch
from torch import Tensor

from skytrain.errors import UserError


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, *, scale: float | None = None, backend: str
) -> Tensor:
    """Causal attention within each document of a packed row.

    q: [T, heads, head_dim]; k, v: [T, kv_heads, head_dim], kv_heads dividing heads (query head h reads key/value head
    h // (heads / kv_heads)); fp32, bf16 or fp16, though GPU kernels take 16-bit only. cu_seqlens: int32 [n + 1] on the
    same device, the documents' bounds, empty documents allowed; a GPU's must run from 0 to T, while on a CPU tokens
    outside get an output of 0 and no gradient. max_seqlen: at least the longest document. scale: of the scores,
    head_dim ** -0.5 if None. backend: as `resolve_backend` returns it. -> [T, heads, head_dim] in q's dtype; the
    softmax is in fp32.
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return _attention(q, k, v, cu_seqlens, max_seqlen, scale, backend)[0]


def resolve_backend(name: str, device: str | torch.device) -> str:
    """The back end that `auto` means on this device, or `name` itself. UserError if that one cannot run here."""
    device = torch.device(device)
    if name != "auto":
        if name not in BACKENDS:
            raise UserError(f"attention.backend = {name!r}: no such back end; give one of {', '.join(BACKENDS)}")
        if reason := _obstacle(name, device):
            raise UserError(f"attention.backend = {name!r} cannot run here: {reason}")
        return name
    order = ("flash_attn_4", "flash_attn", "varlen", "reference") if device.type == "cuda" else ("cpu", "reference")
    return next(candidate for candidate in order if not _obstacle(candidate, device))


def _obstacle(name: str, device: torch.device) -> str | None:
    """Why a back end cannot run on a device, and what to do about it; None if it can."""
    if name == "reference":
        return None
    if name == "cpu":
        if device.type != "cpu":
            return f"it is for CPUs and the device is {device}; use auto"
        if not _has_extension():
            return "skytrain._C is not built; run `pip install --no-build-isolation -e .`, or use reference"
        return None
    if device.type != "cuda":
        return f"it needs a CUDA GPU and the device is {device}; use auto"
    needed, module, package = {
        "varlen": (8, "torch.nn.attention.varlen", "torch>=2.11"),
        "flash_attn": (8, "flash_attn.flash_attn_interface", "flash-attn>=2.7"),
        "flash_attn_4": (9, "flash_attn.cute", "flash-attn-4"),
    }[name]
    if not _importable(module):
        return f"{module} is not installed; run `pip install '{package}'`, or use auto"
    major, minor = torch.cuda.get_device_capability(device)
    if major < needed:
        return f"it needs compute capability {needed}.0 and this GPU has {major}.{minor}; use auto or reference"
    return None


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is absent
        return False


@functools.cache
def _has_extension() -> bool:
    """Importing the extension is what registers its operations."""
    try:
        import skytrain._C  # noqa: F401
    except ImportError:
        return False
    return True


@torch.library.custom_op("skytrain::packed_attention", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float, backend: str
) -> tuple[Tensor, Tensor]:
    """(out like q, logsumexp of the scores fp32 [heads, T])."""
    return BACKENDS[backend][0](q, k, v, cu_seqlens, max_seqlen, scale)


@torch.library.custom_op("skytrain::packed_attention_backward", mutates_args=())
def _attention_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    # An expanded gradient (that of a sum) has stride 0, which GPU kernels do not read.
    return BACKENDS[backend][1](d_out.contiguous(), q, k, v, out, lse, cu_seqlens, max_seqlen, scale)


@_attention.register_fake
def _(q, k, v, cu_seqlens, max_seqlen, scale, backend):
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=_wide(q))


@_attention_backward.register_fake
def _(d_out, q, k, v, out, lse, cu_seqlens, max_seqlen, scale, backend):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx, inputs, output) -> None:
    q, k, v, cu_seqlens, ctx.max_seqlen, ctx.scale, ctx.backend = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens)
    ctx.set_materialize_grads(False)  # nobody uses the logsumexp: no zeros for its gradient


def _backward(ctx, d_out, _d_lse):
    gradients = _attention_backward(d_out, *ctx.saved_tensors, ctx.max_seqlen, ctx.scale, ctx.backend)
    return (*gradients, None, None, None, None)


_attention.register_autograd(_backward, setup_context=_setup_context)


def _cpu(q, k, v, cu_seqlens, max_seqlen, scale):
    import skytrain._C  # noqa: F401  (registers the operations)

    return torch.ops.skytrain.attention_cpu(q, k, v, cu_seqlens, scale)


def _cpu_backward(d_out, q, k, v, out, lse, cu_seqlens, max_seqlen, scale):
    return torch.ops.skytrain.attention_cpu_backward(d_out, q, k, v, out, lse, cu_seqlens, scale)


def _documents(cu_seqlens: Tensor) -> list[slice]:
    bounds = cu_seqlens.tolist()
    return [slice(begin, end) for begin, end in itertools.pairwise(bounds) if begin < end]


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """[L, heads or kv_heads, head_dim] -> [heads, L, head_dim] in fp32 at least, each group's head repeated."""
    return x.to(_wide(x)).transpose(0, 1).repeat_interleave(heads // x.shape[1], dim=0)


def _probabilities(q, k, lse, scale):
    """softmax(scale q k^T) under the causal mask, [heads, L, L]; lse is made if None. q, k: [heads, L, head_dim]."""
    future = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool, device=q.device).triu_(1)
    scores = (scale * q @ k.transpose(1, 2)).masked_fill_(future, -math.inf)
    lse = scores.logsumexp(2) if lse is None else lse
    return scores.sub_(lse[..., None]).exp_(), lse


def _reference(q, k, v, cu_seqlens, max_seqlen, scale):
    out, lse = q.new_zeros(q.shape), q.new_zeros((q.shape[1], q.shape[0]), dtype=_wide(q))
    for rows in _documents(cu_seqlens):
        one_q, one_k, one_v = (_by_head(x[rows], q.shape[1]) for x in (q, k, v))
        p, lse[:, rows] = _probabilities(one_q, one_k, None, scale)
        out[rows] = (p @ one_v).transpose(0, 1)
    return out, lse


def _reference_backward(d_out, q, k, v, out, lse, cu_seqlens, max_seqlen, scale):
    dq, dk, dv = (x.new_zeros(x.shape) for x in (q, k, v))
    for rows in _documents(cu_seqlens):
        one_q, one_k, one_v, one_out, grad = (_by_head(x[rows], q.shape[1]) for x in (q, k, v, out, d_out))
        p, _ = _probabilities(one_q, one_k, lse[:, rows], scale)
        ds = p * (grad @ one_v.transpose(1, 2) - (grad * one_out).sum(2, keepdim=True)) * scale
        dq[rows] = (ds @ one_k).transpose(0, 1)
        for gradient, by_head in ((dk, ds.transpose(1, 2) @ one_q), (dv, p.transpose(1, 2) @ grad)):
            gradient[rows] = by_head.unflatten(0, (k.shape[1], -1)).sum(1).transpose(0, 1)
    return dq, dk, dv


def _varlen(q, k, v, cu_seqlens, max_seqlen, scale):
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    # torch 2.11 takes fewer key/value heads as they are; later ones want to be told.
    grouped = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
    bounds = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
    options = {"window_size": (-1, 0), "scale": scale, "return_aux": AuxRequest(lse=True)}  # (-1, 0) is causal
    return varlen_attn(q, k, v, *bounds, **options, **grouped)


def _varlen_backward(d_out, q, k, v, out, lse, cu_seqlens, max_seqlen, scale):
    bounds = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
    no_dropout = (0.0, True, torch.zeros(2, dtype=torch.uint64, device=q.device), q.new_empty(0))
    windows = {"window_size_left": -1, "window_size_right": 0}
    return torch.ops.aten._flash_attention_backward(
        d_out, q, k, v, out, lse, *bounds, *no_dropout, scale=scale, **windows
    )


def _flash_attn(q, k, v, cu_seqlens, max_seqlen, scale):
    from flash_attn.flash_attn_interface import flash_attn_varlen_func

    bounds = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
    out, lse, _ = flash_attn_varlen_func(q, k, v, *bounds, softmax_scale=scale, causal=True, return_attn_probs=True)
    return out, lse


def _flash_attn_backward(d_out, q, k, v, out, lse, cu_seqlens, max_seqlen, scale):
    from flash_attn.flash_attn_interface import _flash_attn_varlen_backward

    gradients = [torch.empty_like(x) for x in (q, k, v)]
    _flash_attn_varlen_backward(
        *(d_out, q, k, v, out, lse, *gradients, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen),
        dropout_p=0.0,
        softmax_scale=scale,
        causal=True,
        window_size_left=-1,
        window_size_right=-1,
        softcap=0.0,
        alibi_slopes=None,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return tuple(gradients)


def _flash_attn_4(q, k, v, cu_seqlens, max_seqlen, scale):
    from flash_attn.cute import flash_attn_varlen_func

    bounds = {"cu_seqlens_q": cu_seqlens, "cu_seqlens_k": cu_seqlens}
    lengths = {"max_seqlen_q": max_seqlen, "max_seqlen_k": max_seqlen}
    return flash_attn_varlen_func(q, k, v, **bounds, **lengths, softmax_scale=scale, causal=True, return_lse=True)


def _flash_attn_4_backward(d_out, q, k, v, out, lse, cu_seqlens, max_seqlen, scale):
    from flash_attn.cute.interface import _flash_attn_bwd

    bounds = {"cu_seqlens_q": cu_seqlens, "cu_seqlens_k": cu_seqlens}
    lengths = {"max_seqlen_q": max_seqlen, "max_seqlen_k": max_seqlen}
    deterministic = torch.are_deterministic_algorithms_enabled()
    options = {"softmax_scale": scale, "causal": True, "deterministic": deterministic}
    return tuple(_flash_attn_bwd(q, k, v, out, d_out, lse, **options, **bounds, **lengths)[:3])


BACKENDS = {
    "cpu": (_cpu, _cpu_backward),
    "reference": (_reference, _reference_backward),
    "varlen": (_varlen, _varlen_backward),
    "flash_attn": (_flash_attn, _flash_attn_backward),
    "flash_attn_4": (_flash_attn_4, _flash_attn_4_backward),
}
