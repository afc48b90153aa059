"""torch.compile: which backends there are, and what to do where one refuses a model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_INSTEAD = "leave torch_compile out, or try torch_compile_backend='aot_eager' (no compiler needed)"


def check_backend(name: str | None) -> None:
    """Refuse a ``torch_compile_backend`` that torch or accelerate does not have here.

    >>> check_backend("aot_eager")

    Raises:
        ValueError: With the names that both have.
    """
    if name is None:
        return
    import torch._dynamo
    from accelerate.utils import DynamoBackend

    known = sorted({backend.value.lower() for backend in DynamoBackend} & set(torch._dynamo.list_backends(())))
    if name.lower() not in known:
        raise ValueError(
            f"torch_compile_backend={name!r} is not a backend of this torch and accelerate ({', '.join(known)}); "
            "choose one of these, or leave torch_compile out."
        )


@contextmanager
def refusals_explained(name: str | None) -> Iterator[None]:
    """Raise RuntimeError, with what to do, where a backend refuses a model inside the ``with`` block.

    Args:
        name: The backend, where the training arguments name it.
    """
    try:
        yield
    except Exception as error:
        dynamo = sys.modules.get("torch._dynamo.exc")  # loaded by the first compilation
        if dynamo is None or not isinstance(error, dynamo.TorchDynamoException):
            raise
        backend = f"torch_compile_backend={name!r}" if name else "torch.compile"
        reason = " ".join(str(error).split("\n\n")[0].split())  # what follows are hints at torch's own debugging
        raise RuntimeError(
            f"{backend} cannot compile this model ({type(error).__name__}: {reason}); {_INSTEAD}. The weights are "
            "those of the last update."
        ) from error
