"""The second pass in a loop that has no place for one: its forward calls are remembered, and repeated at w + ε."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from rts_hf.optim.optimizer import RTSPUGD
from rts_hf.optim.registration import unwrap_optimizer
from rts_hf.optim.second_pass import Originals, RandomState, keep_buffers

_REMEDY = (
    "run the second pass by hand in `with optimizer.perturbed():`, or pass step() a closure, and leave "
    "attach_second_pass out."
)
# Whether the criterion is all that the outputs are for is looked at in every update on a CPU. Elsewhere the look waits
# for the device, so it is done in the first updates and then now and again.
_WATCHED_FIRST, _WATCHED_EVERY = 4, 64


def attach_second_pass(
    optimizer: Any, model: nn.Module, criterion: nn.Module | None = None, *, total_steps: int | None = None
) -> AttachedSecondPass:
    """Give a loop of the form forward, backward, step its second pass, which runs inside ``optimizer.step()``.

    From now on the calls of ``model`` in train mode are remembered, and before the optimizer steps they are repeated at
    w + ε, in order: on the same inputs, with the same random numbers, autocast and synchronization, BatchNorm's
    statistics kept, and each loss's backward started from the gradient that the first one received, so that what the
    loop divides or scales its loss by holds. The update is, bit for bit on a CPU, that of ``optimizer.perturbed()`` by
    hand, but for the order of additions where several calls share a backward. Where the coming step does not perturb,
    nothing is remembered. A closure that ``step`` is given runs both passes itself.

    What the loop does to gradients between backward and step, such as clipping, acts on the first pass's gradient g. A
    loss that is a function of the criterion's, such as its square, is repeated with the first pass's slope. What does
    not go through the criterion is not repeated: a penalty on the weights belongs into ``weight_decay``, a loss that
    the model keeps for itself into a loop with ``perturbed()``.

    >>> import torch, rts_hf
    >>> model, criterion = torch.nn.Linear(2, 3), torch.nn.CrossEntropyLoss()
    >>> optimizer = rts_hf.RTSPUGD(model.parameters(), lr=0.1, switch=None, perturb_every=1)
    >>> attached = rts_hf.attach_second_pass(optimizer, model, criterion, total_steps=2)
    >>> for step in range(2):
    ...     criterion(model(torch.ones(4, 2)), torch.tensor([0, 1, 2, 0])).backward()
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    >>> optimizer.stats()["gradient_evaluations"]
    4

    Args:
        optimizer: An :class:`RTSPUGD`, or what wraps one (accelerate, timm's Lookahead).
        model: The module that the loop calls, wrapped as it is (DistributedDataParallel, ``torch.compile``).
        criterion: The module that makes the loss of the model's output; None where the output has a ``loss``.
        total_steps: Updates of the whole run; None leaves the optimizer's own. Where that is None too, schedules stand
            and a switch at a share of the run never fires.

    Returns:
        What was attached; its ``detach()`` undoes it.

    Raises:
        ValueError: If there is no RTSPUGD in ``optimizer``, or something is attached to it already.
        TypeError: If ``model`` or ``criterion`` is not a module.
        RuntimeError: From the loop, where its loss cannot be repeated: one that is no function of the criterion's
            inputs, a backward with ``create_graph=True``, an output without a loss, a ``step()`` in eval mode, or a
            gradient that no call of ``model`` led to.
    """
    rts = unwrap_optimizer(optimizer)
    if rts is None:
        raise ValueError(
            f"optimizer is a {type(optimizer).__name__}, which has no second pass; make it with "
            "timm.optim.create_optimizer_v2(model, opt='rts_pugd') or rts_hf.RTSPUGD."
        )
    for name, value in (("model", model), ("criterion", criterion)):
        if not isinstance(value, nn.Module) and (name == "model" or value is not None):
            raise TypeError(
                f"{name} is a {type(value).__name__}, but only the calls of a torch.nn.Module can be remembered; pass "
                "the module that the loop calls, such as torch.nn.CrossEntropyLoss()."
            )
    if rts.attached is not None:
        raise ValueError("optimizer has a second pass attached already; call its detach() first.")
    if total_steps is not None:
        rts.total_steps = total_steps
    return AttachedSecondPass(rts, model, criterion)


class AttachedSecondPass:
    """What :func:`attach_second_pass` returns: the hooks, and the calls of the update that is under way."""

    def __init__(self, optimizer: RTSPUGD, model: nn.Module, criterion: nn.Module | None) -> None:
        self._optimizer, self._model, self._criterion = optimizer, model, criterion
        self._calls: list[_Call] = []
        self._begun: _Call | None = None
        self._is_repeating = False
        self._updates = 0
        self._originals, self._targets = Originals(), Originals()
        self._hooks = [
            model.register_forward_pre_hook(_Hook(self._begin), prepend=True, with_kwargs=True),
            model.register_forward_hook(_Hook(self._end)),
        ]
        if criterion is not None:
            self._hooks += [
                criterion.register_forward_pre_hook(_Hook(self._begin_loss), with_kwargs=True),
                criterion.register_forward_hook(_Hook(self._end_loss)),
            ]
        optimizer.attached = self

    def detach(self) -> None:
        """Undo what was attached: ``step()`` takes the step on the gradient that it finds again."""
        for hook in self._hooks:
            hook.remove()
        self._calls, self._begun = [], None
        if self._optimizer.attached is self:
            self._optimizer.attached = None

    def forget(self) -> None:
        """Forget the calls whose gradients are in place; those that wait for their backward stay."""
        self._calls = [call for call in self._calls if not call.has_gradient]

    # ---- The first pass ----

    def _remembers(self, module: nn.Module, attached: nn.Module | None) -> bool:
        return module is attached and not self._is_repeating and self._optimizer.perturbing and torch.is_grad_enabled()

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._begun = None
        if not (module.training and self._remembers(module, self._model)):
            return
        if self._calls and self._optimizer.has_no_gradients():  # cleared since, and not by way of the optimizer
            self.forget()
        if any(isinstance(leaf, Tensor) and leaf.grad_fn is not None for leaf in tree_flatten((args, kwargs))[0]):
            raise RuntimeError(
                f"attach_second_pass: an input of {type(module).__name__} was made by something else that has a "
                f"gradient, which is not repeated; attach a module that holds both. Else {_REMEDY}"
            )
        wrapper = DistributedDataParallel._get_active_ddp_module()  # where the loop wrapped the model later
        target = module if wrapper is None or wrapper.module is not module else wrapper
        self._begun = _Call(target, self._originals.keep((args, kwargs)), RandomState(_device(module)))

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        call, self._begun = self._begun, None
        if call is None or module is not self._model:
            return None
        leaves, structure = tree_flatten(output)
        own = _loss_of(output) if self._criterion is None else None
        if self._criterion is None:
            if own is None:
                raise RuntimeError(
                    f"attach_second_pass: the output of {type(module).__name__} has no loss; pass the module that "
                    f"makes it as criterion, or give the model its labels. Else {_REMEDY}"
                )
            self._watch(own, _Loss(call))
            # in place of what the loss was made of: these receive what does not come from it
            leaves = [leaf.view_as(leaf) if leaf is not own and _is_made(leaf) else leaf for leaf in leaves]
        call.outputs = [(weakref.ref(leaf), leaf._version) if isinstance(leaf, Tensor) else None for leaf in leaves]
        for place, leaf in enumerate(leaves):
            if leaf is not own and _is_made(leaf):
                leaf.register_hook(_Received(call.output_gradients, place, self._reaches_gradients))
        self._calls.append(call)
        return tree_unflatten(leaves, structure) if self._criterion is None else None

    def _begin_loss(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._calls or not self._remembers(module, self._criterion):
            return None
        found: list[_Call] = []
        gradients: dict[int, Tensor] = {}

        def separate(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or isinstance(leaf, nn.Parameter):
                return leaf
            for call in self._calls:
                place = call.place_of(leaf)
                if place is not None:
                    found.append(call)
                    alias = leaf.view_as(leaf)  # tells what the criterion contributes from what else there is
                    alias.register_hook(_Received(gradients, place, self._reaches_gradients))
                    return _Place(place, alias)
            if not leaf.requires_grad and not any(call.shares_memory_with(leaf) for call in self._calls):
                return leaf
            raise RuntimeError(
                "attach_second_pass: the criterion was given a tensor that is no output of the model as it was (it was "
                f"made from one, changed in place, or made by another model); give it the output. Else {_REMEDY}"
            )

        places = tree_map(separate, (args, kwargs))
        if not found:
            return None
        if any(call is not found[0] for call in found):
            raise RuntimeError(f"attach_second_pass: the criterion compares outputs of several calls; {_REMEDY}")
        self._loss_begun = _Loss(
            found[0],
            self._targets.keep(tree_map(_emptied, places)),
            gradients,
            _autocast(_device(self._model)),
            RandomState(_device(self._model)),
        )
        return tree_map(lambda leaf: leaf.tensor if isinstance(leaf, _Place) else leaf, places)

    def _end_loss(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        loss, self._loss_begun = self._loss_begun, None
        if loss is None or module is not self._criterion:
            return
        if not isinstance(output, Tensor):
            raise RuntimeError(f"attach_second_pass: the criterion returns a {type(output).__name__}; {_REMEDY}")
        self._watch(output, loss)

    _loss_begun: _Loss | None = None

    def _watch(self, tensor: Tensor, loss: _Loss) -> None:
        """Remember the gradient that a loss receives, and that its call is part of the update from then on."""
        loss.call.losses.append(loss)

        def receive(gradient: Tensor) -> None:
            if not self._reaches_gradients():
                return
            if torch.is_grad_enabled():
                raise RuntimeError(f"attach_second_pass: backward(create_graph=True) cannot be repeated; {_REMEDY}")
            loss.gradient = gradient.clone() if loss.gradient is None else loss.gradient + gradient

        if tensor.requires_grad:
            tensor.register_hook(receive)

    def _reaches_gradients(self) -> bool:
        """Return whether the backward that is under way adds to gradients: that of ``torch.autograd.grad`` does not."""
        for group in self._optimizer.param_groups:
            for param in group["params"]:
                if param.requires_grad:
                    try:
                        if torch._C._will_engine_execute_node(get_gradient_edge(param).node):
                            return True
                    except RuntimeError:  # autograd.grad of this very parameter
                        return False
        return False

    # ---- The second pass ----

    def run(self) -> None:
        """Repeat the update's calls at w + ε and add their gradients to α_s·g.

        Raises:
            RuntimeError: If there is nothing to repeat, or not all that the gradient came from.
        """
        calls, self._calls = [call for call in self._calls if call.has_gradient], []
        if not calls:
            raise RuntimeError(
                f"attach_second_pass: no call of {type(self._model).__name__} in train mode led to this gradient; "
                f"attach the very module that the loop calls. Else {_REMEDY}"
            )
        if not self._model.training:
            raise RuntimeError(f"attach_second_pass: step() in eval mode; call model.train() before it. Else {_REMEDY}")
        self._updates += 1
        is_watched = self._updates <= _WATCHED_FIRST or self._updates % _WATCHED_EVERY == 0
        for call in calls:
            call.check(looks_at_values=is_watched or _device(self._model).type == "cpu")
        self._is_repeating = True
        try:
            with self._optimizer.perturbed(), keep_buffers(self._model), torch.enable_grad():
                for call in calls:
                    call.repeat(self._criterion, self._originals, self._targets)
        finally:
            self._is_repeating = False


@dataclass
class _Call:
    """One call of the model, with what its repetition needs."""

    target: Any  # the model, or the DistributedDataParallel around it
    inputs: Any
    random: RandomState
    outputs: list[Any] = field(default_factory=list)  # weak references, for the graph is not kept, and versions
    output_gradients: dict[int, Tensor] = field(default_factory=dict)
    losses: list[_Loss] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.autocast = _autocast(_device(self.target))
        self.synchronizes = getattr(self.target, "require_backward_grad_sync", True)

    @property
    def has_gradient(self) -> bool:
        return bool(self.output_gradients) or any(loss.gradient is not None for loss in self.losses)

    def place_of(self, leaf: Tensor) -> int | None:
        """Return which of the call's outputs a tensor is, where it has not been changed since."""
        if leaf.requires_grad:
            for place, output in enumerate(self.outputs):
                if output is not None and output[0]() is leaf and output[1] == leaf._version:
                    return place
        return None

    def shares_memory_with(self, leaf: Tensor) -> bool:
        """Return whether a tensor is a view of an output, such as a detached one."""
        memory = leaf.untyped_storage().data_ptr()
        alive = [output[0]() for output in self.outputs if output is not None]
        return any(each is not None and each.untyped_storage().data_ptr() == memory for each in alive)

    def check(self, *, looks_at_values: bool) -> None:
        """Raise RuntimeError where the outputs received a gradient that the criterion alone does not account for."""
        losses = [loss for loss in self.losses if loss.gradient is not None]
        whole = bool(losses)
        if looks_at_values:
            for place, gradient in self.output_gradients.items():
                shares = [loss.output_gradients[place] for loss in losses if place in loss.output_gradients]
                whole = whole and bool(shares) and _is_sum(gradient, shares)
        elif whole and losses[0].places is None:
            whole = not self.output_gradients
        if not whole:
            raise RuntimeError(
                "attach_second_pass: the loss is no function of the criterion's inputs alone, so the criterion cannot "
                f"repeat it; {_REMEDY}"
            )

    def repeat(self, criterion: nn.Module | None, originals: Originals, targets: Originals) -> None:
        """Run the call and its losses again and add their gradients."""
        args, kwargs = originals.settle(self.inputs)
        with self.random.replayed(), contextlib.nullcontext() if self.synchronizes else self.target.no_sync():
            with self.autocast():
                output = self.target(*args, **kwargs)
            leaves = tree_flatten(output)[0]
            losses = [loss for loss in self.losses if loss.gradient is not None]
            again = [loss.repeat(criterion, output, leaves, targets) for loss in losses]
            torch.autograd.backward(again, [loss.gradient for loss in losses])


@dataclass
class _Loss:
    """One loss of a call: the criterion's inputs with places for the model's outputs, or None for the output's own."""

    call: _Call
    places: Any = None
    output_gradients: dict[int, Tensor] = field(default_factory=dict)
    autocast: Callable[[], Any] = contextlib.nullcontext
    random: RandomState | None = None
    gradient: Tensor | None = None

    def repeat(self, criterion: nn.Module | None, output: Any, leaves: list[Any], targets: Originals) -> Tensor:
        if self.places is None or criterion is None or self.random is None:
            own = _loss_of(output)
            if own is None:
                raise RuntimeError(f"attach_second_pass: the model's output lost its loss at w + ε; {_REMEDY}")
            return own
        places = targets.settle(self.places)
        args, kwargs = tree_map(lambda leaf: leaves[leaf.place] if isinstance(leaf, _Place) else leaf, places)
        with self.autocast(), self.random.replayed():
            loss: Tensor = criterion(*args, **kwargs)
        return loss


@dataclass
class _Place:
    """Stands for an output of the model among the criterion's inputs."""

    place: int
    tensor: Tensor | None = None


def _emptied(leaf: Any) -> Any:
    return _Place(leaf.place) if isinstance(leaf, _Place) else leaf


def _is_made(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.grad_fn is not None


def _is_sum(whole: Tensor, shares: list[Tensor]) -> bool:
    """Return whether gradients add up to another, up to rounding where there are several."""
    if len(shares) == 1:
        return torch.equal(whole, shares[0]) or bool((whole.isnan() == shares[0].isnan()).all() and whole.isnan().any())
    return torch.allclose(whole, torch.stack(shares).sum(0), rtol=1e-3, atol=1e-3 * float(whole.abs().max()))


class _Received:
    """A tensor's hook that adds up the gradients it receives; it holds no graph."""

    def __init__(self, gradients: dict[int, Tensor], place: int, counts: Callable[[], bool]) -> None:
        self._gradients, self._place, self._counts = gradients, place, counts

    def __call__(self, gradient: Tensor) -> None:
        if not self._counts():
            return
        before = self._gradients.get(self._place)
        self._gradients[self._place] = gradient.detach() if before is None else before + gradient


class _Hook:
    """A module's hook that a copy of the module does not take along, nor a pickle."""

    def __init__(self, function: Callable[..., Any] | None = None) -> None:
        self._function = function

    @torch.compiler.disable
    def __call__(self, *args: Any) -> Any:
        return None if self._function is None else self._function(*args)

    def __reduce__(self) -> Any:
        return _Hook, ()


def _device(model: nn.Module) -> torch.device:
    return next((param.device for param in model.parameters()), torch.device("cpu"))


def _autocast(device: torch.device) -> Callable[[], Any]:
    """Return what makes the autocast context that is on now."""
    kind = device.type
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    cache = torch.is_autocast_cache_enabled()
    return lambda: torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=cache)


def _loss_of(output: Any) -> Tensor | None:
    loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
    return loss if isinstance(loss, Tensor) else None
