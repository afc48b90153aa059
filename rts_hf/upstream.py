"""What this package leans on inside torch, timm, transformers and accelerate beyond their public names, and why.

:data:`INTERNALS` is the whole list. An upstream may move such a name without notice: then what needs it fails at its
import, or when it takes it, with the package, its version and the remedy. Of datasets, evaluate and huggingface_hub
only public names are used.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from importlib.metadata import version
from types import MappingProxyType
from typing import Any, NamedTuple


class Internal(NamedTuple):
    """A name inside another package.

    Attributes:
        module: Where it is.
        name: A name of the module; ``Class._name``, an attribute of the class; ``Class:_name`` or ``function:_name``,
            an attribute of objects that its code speaks of.
        reason: What it is needed for.
    """

    module: str
    name: str
    reason: str


#: package → the oldest and the newest version that were tried; the oldest is the one that ``pyproject.toml`` asks for.
TRIED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "accelerate": ("1.7", "1.15.0"),
        "timm": ("1.0.26", "1.0.31"),
        "torch": ("2.7", "2.14.1"),
        "transformers": ("5.6", "5.24.0"),
    }
)

_TRAINER = "transformers.trainer"
_REGISTRY = "timm.optim._optim_factory"
_MODULE = "torch.nn.modules.module"

INTERNALS: tuple[Internal, ...] = (
    # ---- overridden or called: the Trainer has no callback at these places ----
    Internal(_TRAINER, "Trainer._save", "leaves out the pickled training arguments"),
    Internal(_TRAINER, "Trainer._push_from_checkpoint", "leaves them out of what is pushed"),
    Internal(_TRAINER, "Trainer._save_rng_state", 'writes numpy\'s state, under "numpy" in its file, without pickles'),
    Internal(_TRAINER, "Trainer._save_checkpoint", "marks a checkpoint as begun and as whole, and rotates after that"),
    Internal(_TRAINER, "Trainer._get_output_dir", "tells the checkpoint's folder before it is written"),
    Internal(_TRAINER, "Trainer._determine_best_metric", "takes the latest of equally good evaluations"),
    Internal(_TRAINER, "Trainer._prepare_for_training", "clears what an earlier call of train() left"),
    Internal(_TRAINER, "Trainer._load_optimizer_and_scheduler", "restores switch, schedules and sums with them"),
    Internal(
        _TRAINER, "Trainer._run_epoch", "tells the data the epoch, which comes as a keyword, and stops at the end"
    ),
    *(
        Internal(_TRAINER, f"Trainer.{name}", "reads weights under the names that they were saved by")
        for name in ("_load_from_checkpoint", "_load_best_model", "_issue_warnings_after_load")
    ),
    Internal(_TRAINER, "Trainer._init_training_state", "tells where in a stream a run goes on"),
    Internal(
        _TRAINER, "Trainer._get_collator_with_removed_columns", "would take from a batch what a transform has made"
    ),
    Internal(_TRAINER, "Trainer._finalize_training", "keeps the checkpoint of a run that is to go on"),
    Internal(_TRAINER, "Trainer._get_dataloader", "draws augmentation by seed, epoch and image; of is_training alone"),
    Internal(_TRAINER, "Trainer._remove_unused_columns", "does for the data inside that wrapper what the Trainer does"),
    Internal(_TRAINER, "Trainer._get_grad_norm", "the last look at a gradient before the step: NaN is dropped here"),
    Internal(_TRAINER, "Trainer._get_num_items_in_batch", "counts the images of a second pass that takes a share"),
    Internal(_TRAINER, "Trainer._evaluate", "compares training and validation loss, for the gap switch"),
    # ---- set by the Trainer while it trains ----
    Internal(_TRAINER, "Trainer:_tr_loss", "the losses since the last log entry, which a resumed run goes on with"),
    Internal(_TRAINER, "Trainer:_total_loss_scalar", "those before it"),
    Internal(_TRAINER, "Trainer:_globalstep_last_logged", "where that entry was"),
    Internal(_TRAINER, "Trainer:_train_batch_size", "the size of a micro-batch, also after auto_find_batch_size"),
    # ---- the rest of transformers ----
    Internal("transformers.trainer_callback", "EarlyStoppingCallback:early_stopping_patience_counter", "is restored"),
    Internal("transformers.trainer_jit_checkpoint", "JITCheckpointCallback", "is replaced: it saves inside an update"),
    Internal("transformers.core_model_loading", "PrefixChange", "saves weights under timm's names"),
    Internal("transformers.core_model_loading", "revert_weight_conversion:_weight_conversions", "where that is told"),
    Internal("transformers.modeling_utils", "PreTrainedModel._no_split_modules", "tells FSDP2 the backbone's blocks"),
    # ---- accelerate ----
    Internal(
        "accelerate.state", "GradientState._set_sync_gradients", "syncs on the second pass's last micro-batch only"
    ),
    Internal("accelerate.optimizer", "AcceleratedOptimizer:_is_overflow", "tells the Trainer of a skipped update"),
    # ---- timm ----
    Internal(_REGISTRY, "default_registry", "where create_optimizer_v2 looks up rts_pugd"),
    Internal(_REGISTRY, "OptimInfo", "an entry of it"),
    Internal("timm.optim.lookahead", "Lookahead:_base_optimizer", "finds RTSPUGD inside lookahead_rts_pugd"),
    # ---- torch ----
    *(
        Internal("torch", f"_foreach_{name}", "one call for all parameters, as torch's own optimizers do")
        for name in (
            *("abs", "abs_", "add", "add_", "addcmul_", "copy_"),
            *("div", "div_", "mul", "mul_", "norm", "zero_"),
        )
    ),
    Internal("torch", "Tensor._version", "tells whether a pass changed its inputs, or somebody cleared a gradient"),
    Internal("torch", "_C", "where the next one is"),
    Internal("torch._C", "_will_engine_execute_node", "tells a backward that adds to gradients from autograd.grad"),
    Internal("torch.utils", "_pytree", "finds the tensors in a call's inputs and outputs"),
    Internal(
        "torch.nn.parallel", "DistributedDataParallel._get_active_ddp_module", "is called again, not what it wraps"
    ),
    Internal("torch.amp", "GradScaler:_scale", "scales the first pass's gradients again, as the second's are"),
    Internal("torch", "Tensor._is_view", "copies a gradient that is a part of a shared buffer"),
    Internal(_MODULE, "Module:_buffers", "named_buffers() is slow, and asked twice an update"),
    Internal(_MODULE, "Module:_non_persistent_buffers_set", "leaves constants alone"),
    Internal(_MODULE, "Module:_modules", "named_modules() is too"),
    Internal(_MODULE, "Module:_parameters", "named_parameters() is too"),
    Internal("torch.nn.modules.batchnorm", "_BatchNorm", "finds the layers of BatchNorm of every dimension"),
    Internal("torch.optim", "SGD:_step_supports_amp_scaling", "lets a fused step divide the gradients"),
    Internal("torch.amp", "GradScaler._maybe_opt_step", "the scaler's call of step(), which may hold no closure"),
    Internal("torch._dynamo.exc", "TorchDynamoException", "tells a compiler's refusal from other errors"),
    Internal("torch.distributed.fsdp._common_utils", "_set_fsdp_flattened", "marks what FSDP of version 1 flattened"),
)


def take(package: str, name: str) -> Any:
    """Return a module's name of :data:`INTERNALS`.

    >>> take("timm", "default_registry").get_optimizer_info("sgd").name
    'sgd'

    Raises:
        ImportError: If the package has moved it; with the package's version and the remedy.
    """
    internal = next(each for each in INTERNALS if each.name == name and _package(each) == package)
    if not is_there(internal):
        raise _moved(internal)
    return getattr(importlib.import_module(internal.module), name)


def check_internals(*packages: str) -> None:
    """Refuse a version of these packages that has moved one of :data:`INTERNALS`.

    >>> check_internals("timm")

    Raises:
        ImportError: With the package's version and the remedy.
    """
    for internal in INTERNALS:
        if _package(internal) in packages and not is_there(internal):
            raise _moved(internal)


def is_there(internal: Internal) -> bool:
    """Return whether the installed package has the name.

    Raises:
        ModuleNotFoundError: If the package itself is not installed.
    """
    try:
        found: Any = importlib.import_module(internal.module)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith(f"{_package(internal)}."):
            raise
        return False
    path, _, spoken_of = internal.name.partition(":")
    for name in path.split("."):
        if not hasattr(found, name):
            return False
        found = getattr(found, name)
    if not spoken_of:
        return True
    codes = [getattr(inspect.unwrap(each), "__code__", None) for each in (found, *vars(found).values())]
    return any(spoken_of in (*code.co_names, *code.co_consts) for code in codes if code is not None)


def _package(internal: Internal) -> str:
    return internal.module.split(".")[0]


def _moved(internal: Internal) -> ImportError:
    package = _package(internal)
    oldest, newest = TRIED[package]
    return ImportError(
        f"{package} {version(package)} has no {internal.module}.{internal.name}, which rts_hf needs "
        f"({internal.reason}); pip install '{package}>={oldest},<={newest}', or a newer rts_hf."
    )
