"""Whether an operation's results are right, before it is timed: errors against fp64, measured in plain torch's own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from cases import Inputs, Operation, Outputs, backward, with_gradients
from torch import Tensor

CHUNK = 1024


def results(operation: Operation, call: Callable[[Inputs], Outputs], inputs: Inputs, upstream: Outputs) -> Outputs:
    """Outputs, then gradients, of fresh copies of the inputs: some peers write over theirs."""
    leaves = with_gradients(operation, {k: x.clone() if isinstance(x, Tensor) else x for k, x in inputs.items()})
    outputs = call(leaves)
    # A copy, since what an output looks like may be reused by the backward, and the upstream gradient too.
    kept = tuple(output.detach().clone() for output in outputs)
    gradients = backward(operation, leaves, outputs, tuple(x.clone() for x in upstream))
    return kept + tuple(gradient.detach() for gradient in gradients)


def exact(operation: Operation, inputs: Inputs, upstream: Outputs) -> Outputs:
    """The same in fp64. The head's logits are made chunk by chunk: all of them at once would not fit a GPU."""
    wide = {name: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in inputs.items()}
    if operation.name == "linear_cross_entropy":
        return _exact_head(wide, upstream)
    return results(operation, operation.plain, wide, tuple(x.double() for x in upstream))


def _exact_head(inputs: Inputs, upstream: Outputs) -> Outputs:
    hidden, weight, labels = inputs["hidden"], inputs["weight"], inputs["labels"]
    loss, d_hidden, d_weight = hidden.new_zeros(()), torch.empty_like(hidden), torch.zeros_like(weight)
    for start in range(0, hidden.shape[0], CHUNK):
        part = slice(start, start + CHUNK)
        log_p = torch.log_softmax(hidden[part] @ weight.t(), 1)
        loss -= log_p.gather(1, labels[part, None]).sum()
        d_logits = log_p.exp_().scatter_add_(1, labels[part, None], -torch.ones_like(hidden[part, :1]))
        d_hidden[part] = d_logits @ weight
        d_weight.addmm_(d_logits.t(), hidden[part])
    scale = 1 / hidden.shape[0]
    return loss * scale, d_hidden * (scale * upstream[0]), d_weight * (scale * upstream[0])


def error_ratio(mine: Outputs, plain: Outputs, right: Outputs) -> float:
    """The largest error of `mine` in units of plain torch's, over all results; infinite where one is no number.

    Errors are compared by their largest and by their root mean square; plain torch's counts as at least half an ulp of
    the result's largest number, so that 2 is one ulp; where the result is one number, a sum whose error is luck, as 4.
    """
    worst = 0.0
    for ours, theirs, exactly in zip(mine, plain, right, strict=True):
        if ours.shape != exactly.shape or not torch.isfinite(ours).all():
            return float("inf")
        floor = (4.0 if exactly.numel() == 1 else 0.5) * torch.finfo(theirs.dtype).eps * exactly.abs().max().item()
        for measure in (lambda error: error.abs().max(), lambda error: error.square().mean().sqrt()):
            own, others = (measure(x.double() - exactly).item() for x in (ours, theirs))
            worst = max(worst, own / max(others, floor)) if own else worst
    return worst
