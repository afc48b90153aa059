"""The norm of the gradients of an update that the Trainer does not clip."""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from rts_hf.modules import every_module
from rts_hf.perturbation import global_norm

_WHOLE = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def unclipped_norm(accelerator: Accelerator, model: nn.Module, known: Tensor | None = None) -> Tensor | None:
    """Return the gradients' norm, unscaled where a gradient scaler scaled them, or None where they are sharded.

    accelerate's own way to it clips to infinity, and so reads and writes every gradient once more.

    Args:
        accelerator: That trains.
        model: Whose gradients are complete.
        known: Their norm where they were clipped, which is returned as it is.
    """
    if known is not None or accelerator.distributed_type not in _WHOLE:
        return known
    params = {id(param): param for module in every_module(model) for param in module._parameters.values()}  # tied: once
    grads = [param.grad for param in params.values() if param is not None and param.grad is not None]
    if not grads:
        return None
    accelerator.unscale_gradients()
    return global_norm(grads)
