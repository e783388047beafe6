"""What each layer keeps for its backward pass: everything, its input alone, or the outputs of chosen operations.

A layer with a policy is checkpointed: backward runs its forward again. Two dispatch modes, one in each run, see every
operation of the layer below autograd: the first takes the outputs that are to be held, into device or host memory, and
the second gives them back instead of running the operation. Autograd notices neither, so gradients keep every bit.

The operations are known by what they are and, for the matrix products, by their order (q, k, v, o, gate, up, down):
below autograd a product has no name, and its weight is FSDP's gathered copy or, under compile, a symbol. A layer that
runs other products is an error, not a silent mix-up.

The second run stops at the last tensor that backward needs. Two kinds of products whose value nobody reads would still
run before that, and are left out: down_proj's, and with "qkv" those of q and k, unless query and key norms need them.

Under compile the partitioner chooses, from torch's own checkpoint tags, what the compiled forward saves; what of that
goes to the host is picked from the tensors that it saves, by hooks outside of it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from skytrain.config import Activations
from skytrain.errors import UserError
from skytrain.model import CausalLM, DecoderLayer
from skytrain.offload import Frame, HostMemory, Stored, alias, is_dense

Forward = Callable[..., Tensor]


@dataclass(frozen=True)
class Policy:
    """What one decoder layer holds from forward to backward; an operation in neither set is done again in backward."""

    keep: frozenset[str] = frozenset()
    """Of OPERATIONS: on the device."""
    offload: frozenset[str] = frozenset()
    """Of OPERATIONS and "input" (the layer's own input): in pinned host memory."""


def policies(settings: Activations, layers: int) -> list[Policy | None]:
    """One policy a layer, all alike; None: everything is kept."""
    if settings.checkpoint == "none":
        return [None] * layers
    return [Policy(frozenset(settings.keep), frozenset(settings.offload))] * layers


def apply(
    model: CausalLM,
    policies: Sequence[Policy | None],
    *,
    tokens: int,
    compile: Callable[[Forward], Forward] | None = None,
) -> HostMemory | None:
    """Wraps the forward of each decoder layer; the host memory that they share, None where nothing is offloaded.

    tokens: the most in one row. compile: torch.compile or alike, over recomputation and under offload. Before
    fully_shard: its hooks then run once a layer. Raises UserError for what cannot be done here.
    """
    _check(model, policies, compiled=compile is not None)
    host = HostMemory(tokens) if any(policy and policy.offload for policy in policies) else None
    for layer, policy in zip(model.model.layers, policies, strict=True):
        # The bound method is replaced rather than the module, so that parameters keep their Hugging Face names.
        layer.forward = _wrap(layer, policy, host, compile)
    return host


def _check(model: CausalLM, policies: Sequence[Policy | None], *, compiled: bool) -> None:
    for policy in filter(None, policies):
        if "qkv" in policy.keep | policy.offload and model.lm_head.backends.kernels == "liger":
            raise UserError(
                "activations: 'qkv' cannot be held with kernels.backend = 'liger', whose rotary embedding torch does "
                "not see; take it out, or use another back end"
            )
        if compiled and policy.keep and policy.offload - {"input"}:
            raise UserError(
                "activations: with train.compile = true operations are either all kept or all offloaded (the input may "
                "be offloaded beside either); move those of activations.offload, or set train.compile = false"
            )


def _wrap(
    layer: DecoderLayer, policy: Policy | None, host: HostMemory | None, compile: Callable[[Forward], Forward] | None
) -> Forward:
    if policy is None:
        return compile(layer.forward) if compile else layer.forward
    # Nothing in a layer draws random numbers, and saving the generator's state would wait for the device.
    options = {"use_reentrant": False, "preserve_rng_state": False}
    held = _held(policy, layer.self_attn.q_norm is not None)
    if compile is not None:
        if policy.keep or policy.offload - {"input"}:
            # The compiler takes a partial and no other function.
            options["context_fn"] = functools.partial(_compiled_contexts, held)
        forward = compile(functools.partial(checkpoint, layer.forward, **options))
        if not policy.offload:
            return forward
        return functools.partial(_offload_saved, forward, layer, policy, host)
    if not policy.keep and not policy.offload:
        return functools.partial(checkpoint, layer.forward, **options)
    return functools.partial(_selective, layer.forward, held, host, options)


def _selective(
    forward: Forward, held: _Held, host: HostMemory | None, options: dict[str, Any], x: Tensor, *arguments: Any
) -> Tensor:
    """The layer's forward, eagerly. x: its input."""
    if not torch.is_grad_enabled():
        return forward(x, *arguments)
    frame = None if host is None else host.begin(len(x))
    with _saving_input(x, frame) if "input" in held.policy.offload else contextlib.nullcontext():
        contexts = functools.partial(_contexts, held, frame)
        return checkpoint(forward, x, *arguments, context_fn=contexts, **options)


def _saving_input(x: Tensor, frame: Frame) -> torch.autograd.graph.saved_tensors_hooks:
    """Around a checkpoint, whose own hooks are the inner ones: what it saves itself are its arguments."""
    address = x.data_ptr()

    def pack(tensor: Tensor) -> Tensor | Stored:
        return frame.put(tensor) if tensor.data_ptr() == address else tensor

    return torch.autograd.graph.saved_tensors_hooks(pack, frame.unpack)


def _offload_saved(
    forward: Forward, layer: DecoderLayer, policy: Policy, host: HostMemory, x: Tensor, *arguments: Any
) -> Tensor:
    """The compiled layer's forward. Of the tensors that it saves, its input and those that it made are moved."""
    if not torch.is_grad_enabled():
        return forward(x, *arguments)
    frame, address = host.begin(len(x)), x.untyped_storage().data_ptr()
    # Under FSDP these are the gathered weights, and the layer is called while they are.
    given = [a for a in (*arguments, *layer.parameters()) if isinstance(a, Tensor)]
    others = {a.untyped_storage().data_ptr() for a in given}
    moves_input, moves_made = "input" in policy.offload, bool(policy.offload - {"input"})

    def pack(tensor: Tensor) -> Tensor | Stored:
        storage = tensor.untyped_storage().data_ptr()
        moved = moves_input if storage == address else moves_made and storage not in others
        return frame.put(tensor) if moved and is_dense(tensor) else tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, frame.unpack):
        return forward(x, *arguments)


# Which operations a layer runs

_PRODUCTS = ("q", "k", "v", "o_proj", "gate", "up", "down")
_NAMES = {"v": "qkv", "rope": "qkv"}
"""Those of what a layer runs that are held under another name: its queries and keys are held as rope leaves them."""
_PRODUCT_OPERATIONS = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.skytrain.linear_in_fp32.default,
)


class _Names:
    """Names the operations of one run of a layer, in the order in which they come."""

    def __init__(self) -> None:
        self.products, self.attended = 0, False

    @property
    def complete(self) -> bool:
        return self.products == len(_PRODUCTS) and self.attended

    def __call__(self, operation: Any) -> str | None:
        if operation in _PRODUCT_OPERATIONS:
            if self.products == len(_PRODUCTS):
                raise RuntimeError(f"a layer runs more products than {', '.join(_PRODUCTS)}")
            self.products += 1
            return _PRODUCTS[self.products - 1]
        if operation is torch.ops.skytrain.packed_attention.default:
            self.attended = True
            return "attention"
        # The second where the compiler is given the formula of the rotation, which ends in it.
        return "rope" if operation in (torch.ops.skytrain.rope.default, torch.ops.aten.cat.default) else None


class _Held:
    """What becomes of each named operation's output."""

    def __init__(self, policy: Policy, has_norms: bool) -> None:
        self.policy = policy
        holds_qkv = "qkv" in policy.keep | policy.offload
        self.unread = {"down", "q", "k"} if holds_qkv and not has_norms else {"down"}

    def __call__(self, name: str | None) -> str:
        """`keep`, `offload`, `unread` or `recompute`."""
        if name in self.unread:
            return "unread"
        operation = _NAMES.get(name, name)
        if operation in self.policy.keep:
            return "keep"
        return "offload" if operation in self.policy.offload else "recompute"


@functools.cache
def _held(policy: Policy, has_norms: bool) -> _Held:
    """One for all layers that hold the same: the compiler goes by its identity, and would compile each of them anew."""
    return _Held(policy, has_norms)


# Eagerly


@dataclass
class _Kept:
    """An output on the device."""

    tensor: Tensor
    version: int

    def get(self) -> Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError(f"a kept tensor {tuple(self.tensor.shape)} was changed in place before its backward")
        return self.tensor


@dataclass
class _Unread:
    """An output whose value does not matter."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def get(self) -> Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device=self.device)


def _contexts(held: _Held, frame: Frame | None) -> tuple[TorchDispatchMode, TorchDispatchMode]:
    outputs: dict[str, Any] = {}
    return _Forward(held, frame, outputs), _Backward(frame, outputs)


class _Forward(TorchDispatchMode):
    """Runs every operation, and holds the outputs of the chosen ones in `outputs`, by name."""

    def __init__(self, held: _Held, frame: Frame | None, outputs: dict[str, Any]) -> None:
        super().__init__()
        self.held, self.frame, self.outputs, self.names = held, frame, outputs, _Names()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = self.names(func)
        if (hold := self._how(self.held(name))) is not None:
            if name in self.outputs:
                raise RuntimeError(f"a layer runs {name} more than once")
            self.outputs[name] = tree_map_only(Tensor, hold, out)
        return out

    def _how(self, what: str) -> Callable[[Tensor], Any] | None:
        if what == "keep":
            return lambda x: _Kept(alias(x), x._version)
        if what == "offload":
            return self.frame.put
        return (lambda x: _Unread(x.shape, x.dtype, x.device)) if what == "unread" else None

    def __exit__(self, kind, value, trace):
        super().__exit__(kind, value, trace)
        if kind is None and not self.names.complete:
            raise RuntimeError(f"a layer did not run all of {', '.join(_PRODUCTS)} and attention")


class _Backward(TorchDispatchMode):
    """Gives back what is in `outputs`, each once, and runs every other operation."""

    def __init__(self, frame: Frame | None, outputs: dict[str, Any]) -> None:
        super().__init__()
        self.frame, self.outputs, self.names = frame, outputs, _Names()

    def __enter__(self):
        self.names = _Names()
        if self.frame is not None:
            self.frame.arrive()
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        held = self.outputs.pop(self.names(func), None)
        if held is None:
            return func(*args, **(kwargs or {}))
        return tree_map_only((_Kept, _Unread, Stored), self._give, held)

    def _give(self, held: _Kept | _Unread | Stored) -> Tensor:
        return self.frame.get(held) if isinstance(held, Stored) else held.get()


# Under compile


def _compiled_contexts(held: _Held) -> tuple[TorchDispatchMode, TorchDispatchMode]:
    names = _Names()

    def policy(_context: Any, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
        saved = held(names(operation)) in ("keep", "offload")
        return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)
