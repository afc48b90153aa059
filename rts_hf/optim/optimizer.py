"""RTSPUGD, the two-pass optimizer with scheduled radius, timing and scale."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from rts_hf.optim.bases import check_group, check_tensors, create_base
from rts_hf.optim.capture import CapturableOptimizer, is_taken_over
from rts_hf.optim.parallelism import check_parameters
from rts_hf.optim.perturbation import (
    METHODS,
    copy_,
    global_norm,
    lengthening_divisor,
    perturb_,
    probe,
    save_and_measure,
)
from rts_hf.optim.schedules import STRATEGIES, AlphaSchedule, check_schedule, progress_at
from rts_hf.optim.switches import PhaseSwitch, create_switch
from rts_hf.optim.timing import Legal, name_at, place
from rts_hf.optim.unit_step import factor_between, is_fused, refuse_closure, run_scaled, step_base, take_unit_step

_KERNEL_DEVICES = {"cuda"}


class _Default(str):
    """A default that can be told from the same text given."""


_DEFAULT_SWITCH = _Default("staged")


class RTSPUGD(CapturableOptimizer):
    """Radius-Timing-Scale on Perturbated Unit Gradient Descent, around any optimizer timm knows.

    With weights ``w``, ``g = ∇f(w)``, global norms, and the schedules ``α_r`` and ``α_s`` at progress
    ``u = t/(T − 1)`` after ``t`` of ``T`` steps::

        ε  = α_r · |w|⊙g / ‖ |w|⊙g ‖        perturbed(): weights at w + ε
        g* = ∇f(w + ε)                      the second pass, added to α_s·g
        U  = (g* + α_s·g) / ‖g* + α_s·g‖    step(): U goes to the base optimizer as its gradient

    Before the switch, a step is the base optimizer's own step on ``g``. By default, steps are unit steps on ``g`` from
    half of the run on, which leave a ``g`` longer than 1 as it is, and perturbed ones once the gap between validation
    and training loss has grown, of which :meth:`observe_losses` tells; the paper's method is
    ``RTSPUGD(..., **rts_hf.PAPER)``.

    >>> import torch, rts_hf
    >>> model = torch.nn.Linear(2, 1)
    >>> timing = {"switch": "fixed", "switch_at": 1, "perturb_every": 1, "total_steps": 3}
    >>> optimizer = rts_hf.RTSPUGD(model.parameters(), lr=0.1, **timing)
    >>> for step in range(3):
    ...     model(torch.ones(4, 2)).square().mean().backward()
    ...     if optimizer.perturbing:
    ...         with optimizer.perturbed():
    ...             model(torch.ones(4, 2)).square().mean().backward()
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    ...     print(optimizer.phase, optimizer.stats()["gradient_evaluations"])
    pugd 1
    pugd 3
    pugd 5

    ``step(closure)`` does both passes by itself; the closure computes the loss and its gradients and may call
    ``zero_grad``. After the switch, ``step()`` without a second pass takes the unit-gradient step on ``g`` alone.

    Args:
        params: Parameters or parameter groups. Groups share one perturbation norm and one phase.
        lr: Learning rate of the base optimizer; None takes its default.
        base: A name timm knows, for instance ``sgd`` (Nesterov momentum 0.9, as everywhere in timm), ``momentum``,
            ``adamw``, ``lion``.
        method: How ε is built and what the base optimizer receives: ``pugd``, ``sam`` or ``asam``. The latter two
            want ``scale="constant", scale_beta_max=0``, which the registered names ``sam`` and ``asam`` set.
        radius, radius_beta_min, radius_beta_max: As in :class:`AlphaSchedule`; β_max None: 1 if ``constant``, else 2.
        scale, scale_beta_min, scale_beta_max: Strategy and bounds of α_s.
        switch: ``staged``, ``gradient_variance``, ``generalization_gap``, ``fixed``, a :class:`PhaseSwitch`, or None to
            perturb from the first step; the settings of a named one are further keyword arguments with the prefix
            ``switch_``, for instance ``switch_gamma=0.1``; without ``switch``, ``switch_at`` chooses
            ``fixed``. The variance switch reads its norms once a window, so the phase changes at multiples of it.
        total_steps: Optimizer steps of the whole run, at least 1. None leaves the schedules at u = 0.
        perturb_every: Perturb one step in this many after the switch, at least 1; the steps between are
            unit-gradient steps on ``g``.
        capturable: Keep position and schedules on the device too, so that both halves of an update can be captured in a
            CUDA graph, and ``torch.compile(optimizer.step)`` makes one graph (not with torch 2.7). Capture after the
            switch and after a few perturbed updates; with ``zero_grad(set_to_none=False)``, so that gradients stay
            where they lie; as many updates in one graph as ``perturb_every``; and anew after a load or a change of
            ``total_steps``. A changing ``lr`` is then a tensor on the device, as for torch's own optimizers. Whatever
            tells the position afterwards (:meth:`stats`, :meth:`state_dict`) waits for the device. A compiled step
            takes a NaN or infinite gradient as zero where a fused one leaves the step out, and leaves the unit
            gradient in ``param.grad``.
        **base_kwargs: Arguments of the base optimizer, as :func:`timm.optim.create_optimizer_v2` takes them
            (``weight_decay``, ``momentum``, ``betas``, ``nesterov``, ``fused``, ...). ``fused=None`` lets
            torch's SGD take the unit steps by its fused kernel, which divides by the norm itself and leaves out a step
            whose gradient is infinite or NaN; ``fused=True`` also those before the switch.

    Raises:
        ValueError: For a setting outside its range, an unknown name, or settings that do not belong together.

    Source: RTS-PUGD; PUGD is Tseng et al., "Perturbated Gradients Updating within Unit Space", 2022.
    """

    LEGAL: ClassVar[dict[str, Legal]] = {
        **CapturableOptimizer.LEGAL,
        "rts_method": Legal(high=len(METHODS) - 1),
        **{f"rts_{name}": Legal(high=len(STRATEGIES) - 1) for name in ("radius", "scale")},
        **{f"rts_{name}_beta_{end}": Legal(whole=False) for name in ("radius", "scale") for end in ("min", "max")},
        "rts_perturb_every": Legal(1),
    }
    attached: Any = None  # what attach_second_pass returned; not saved

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = None,
        *,
        base: str = "sgd",
        method: str = "pugd",
        radius: str = "cosine_annealing",
        radius_beta_min: float = 0.0,
        radius_beta_max: float | None = None,
        scale: str = "cosine_annealing",
        scale_beta_min: float = 0.0,
        scale_beta_max: float = 1.0,
        switch: str | PhaseSwitch | None = _DEFAULT_SWITCH,
        total_steps: int | None = None,
        perturb_every: int = 1,
        capturable: bool = False,
        **base_kwargs: Any,
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"method={method!r} is unknown; choose one of {', '.join(METHODS)}.")
        radius_beta_max = (1.0 if radius == "constant" else 2.0) if radius_beta_max is None else radius_beta_max
        check_schedule("radius", radius, radius_beta_min, radius_beta_max)
        check_schedule("scale", scale, scale_beta_min, scale_beta_max)
        settings = {key: base_kwargs.pop(key) for key in list(base_kwargs) if key.startswith("switch_")}
        if switch is _DEFAULT_SWITCH and "switch_at" in settings:
            switch = "fixed"
        ready_switch = create_switch(switch, {key.removeprefix("switch_"): value for key, value in settings.items()})
        Legal(1).check("perturb_every", perturb_every)
        self.capturable = capturable
        self._forget_transient()
        super().__init__(
            create_base(params, base, lr, base_kwargs, capturable=capturable),
            ready_switch,
            total_steps,
            {
                "rts_method": place(method, METHODS),
                "rts_radius": place(radius, STRATEGIES),
                "rts_radius_beta_min": float(radius_beta_min),
                "rts_radius_beta_max": float(radius_beta_max),
                "rts_scale": place(scale, STRATEGIES),
                "rts_scale_beta_min": float(scale_beta_min),
                "rts_scale_beta_max": float(scale_beta_max),
                "rts_perturb_every": perturb_every,
            },
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; it joins the others' position and phase.

        Raises:
            ValueError: For an entry that groups share, a number outside its range, or parameters that are not real
                numbers.
        """
        check_group(param_group, self.base_optimizer.defaults)
        super().add_param_group({**param_group})  # so that the caller's own, used again, does not hold this position
        try:
            check_tensors(self.param_groups[-1:])
        except ValueError:
            del self.param_groups[-1]
            raise

    def _forget_transient(self) -> None:
        super()._forget_transient()
        self._buffers: list[Tensor] = []
        self._forms_of_buffers: list[tuple[Any, ...]] = []  # of the tensors that they were made like
        self._norms: tuple[Tensor | float, Tensor | float] = 0.0, 0.0  # ‖g‖ and ‖ε‖ of the last step
        self._coming_norms: tuple[Tensor | float, Tensor | float] | None = None  # those of a step that is under way
        self._probe_norm: Tensor | float | None = None  # that of a share of g* + α_s·g, once there is a g*
        self._rescaled: tuple[Tensor | float, Tensor | float] = 1.0, 1.0  # that norm before and at the last step
        self._alphas: tuple[Tensor | float, Tensor | float] = 0.0, 0.0
        self._lists: Any = None  # of addresses, for Triton's kernels
        self._is_perturbed = False
        self._closure_clears = False

    def __repr__(self) -> str:
        step = f"{self._lead['rts_step']} of {self.total_steps or 'unknown'}"
        return (
            f"{type(self).__name__}(base={type(self.base_optimizer).__name__}, method={self.method!r}, "
            f"radius={self.radius_schedule}, scale={self.scale_schedule}, switch={self.switch!r}, "
            f"fused={is_fused(self.base_optimizer)}, phase={self.phase!r}, step={step})"
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        check_parameters(self.param_groups)  # accelerate flattens them after construction and loads the state again
        self._forget_transient()

    def _check_entries(self, entries: dict[str, Any]) -> None:
        super()._check_entries(entries)
        for name in ("rts_radius", "rts_scale"):
            strategy = name_at(entries[name], STRATEGIES) or ""
            check_schedule(name, strategy, entries[f"{name}_beta_min"], entries[f"{name}_beta_max"])

    # ---- What the loop asks ----

    @property
    def perturbing(self) -> bool:
        """Whether the coming step wants a second pass."""
        if self._lead["rts_perturb_every"] > 1:
            self._catch_up()
        lead, first = self._lead, self.perturbs_from
        return first is not None and (lead["rts_step"] - first) % lead["rts_perturb_every"] == 0

    @property
    def method(self) -> str:
        """``"pugd"``, ``"sam"`` or ``"asam"``."""
        return name_at(self._lead["rts_method"], METHODS) or ""

    @property
    def radius_schedule(self) -> AlphaSchedule:
        """The schedule of α_r."""
        return self._schedule("radius")

    @property
    def scale_schedule(self) -> AlphaSchedule:
        """The schedule of α_s."""
        return self._schedule("scale")

    def settings(self) -> dict[str, Any]:
        """Return what the run was told, without how far it has come: method, schedules, switch, total steps."""
        names = {"method": self.method, "radius": self.radius_schedule.strategy, "scale": self.scale_schedule.strategy}
        return {**super().settings(), **names}

    def apply_settings(self, settings: dict[str, Any]) -> None:
        """Take over what :meth:`settings` returned; position and phase stay."""
        tables: dict[str, Mapping[str, Any]] = {"method": METHODS, "radius": STRATEGIES, "scale": STRATEGIES}
        super().apply_settings({**settings, **{name: place(settings[name], table) for name, table in tables.items()}})

    def stats(self) -> dict[str, int | float]:
        """Return the last step's figures as plain Python numbers; waits for the device.

        ``step`` (steps done), ``phase`` (0 = sgd, 1 = pugd), ``alpha_r`` and ``alpha_s`` (the schedules at that step;
        before the switch they are not used), ``gradient_norm`` (‖g‖, without a gradient scaler's scale once the step is
        taken), ``epsilon_norm`` (‖ε‖, 0 where the step did not perturb), ``switch_step`` (-1 before the switch),
        ``gradient_evaluations`` (one a pass over the batch, of steps that were taken) and ``unusable_gradients``
        (unit-gradient steps since construction or load whose gradient was zero, infinite or NaN, and counted as zero).
        """
        self._catch_up()
        lead = self._lead
        gradient_norm, epsilon_norm = self._coming_norms or self._norms
        factor = factor_between(*self._rescaled) if self._coming_norms is None else 1.0
        return {
            "step": lead["rts_step"],
            "phase": 0 if lead["rts_switched_at"] < 0 else 1,
            "alpha_r": float(self._alphas[0]),
            "alpha_s": float(self._alphas[1]),
            "gradient_norm": float(gradient_norm) * factor,
            "epsilon_norm": float(epsilon_norm),
            "switch_step": lead["rts_switched_at"],
            "gradient_evaluations": lead["rts_gradient_evaluations"],
            "unusable_gradients": self._unusable_gradients(),
        }

    # ---- The two passes ----

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Hold the weights at w + ε inside the ``with`` block, and at w, bit for bit, after it.

        The gradients of the first pass must be in place; inside, they are α_s·g, so that a ``backward`` adds g*.

        Raises:
            RuntimeError: If the coming step wants no second pass, or inside another ``perturbed()``.
        """
        with self._at_w_plus_epsilon() as (params, grads):
            versions = [grad._version for grad in grads]
            yield
            self._put_back_cleared(params, grads, versions)

    @contextmanager
    def _at_w_plus_epsilon(self) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        if self._is_perturbed:
            raise RuntimeError("perturbed() inside perturbed(): the weights are at w + ε already.")
        self._catch_up()
        if not self.perturbing:
            raise RuntimeError(
                "perturbed() was called for a step that wants no second pass "
                f"(phase={self.phase!r}, step={self._lead['rts_step']}); ask `if optimizer.perturbing:` first."
            )
        if self._probe_norm is not None:
            self._warn_once(
                "perturbed() came a second time before step(), and scales the first gradients twice. With "
                "accumulation, run the first pass over all micro-batches of the update, then the second over them all "
                "in one perturbed(); where step() was left out, call the optimizer's zero_grad()."
            )
        params, grads = self._params_and_gradients()
        self._alphas = self._alphas_now(params)
        saved = self._buffers_like(params)
        self._coming_norms = 0.0, 0.0
        self._is_perturbed = True
        try:
            with torch.no_grad():
                method = METHODS[self.method]
                self._lists = self._kernels_lists(params, grads, saved)
                norm: Tensor | float = 0.0
                divisor: Tensor | None = None
                if self._lists is not None:
                    norm, divisor = self._lists.save_and_measure(method)
                elif params:
                    norm, divisor = save_and_measure(params, grads, saved, method)
            try:
                with torch.no_grad():
                    if self._lists is not None:
                        self._coming_norms = norm, self._lists.perturb_(params, grads, divisor, *self._alphas, method)
                    elif params:
                        self._coming_norms = norm, perturb_(params, grads, saved, divisor, *self._alphas, method)
                torch.clear_autocast_cache()  # an autocast context around both passes keeps casts of w
                yield params, grads
            finally:
                with torch.no_grad():
                    copy_(params, saved)
                torch.clear_autocast_cache()
            _, grads = self._params_and_gradients()
            with torch.no_grad():
                self._probe_norm = global_norm([probe(grads)]) if grads else 0.0
        finally:
            self._is_perturbed = False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step and return the closure's first loss, or None without a closure.

        Without any gradient, nothing moves and no step is counted.

        Args:
            closure: Computes the loss, calls ``backward`` and returns the loss; may call ``zero_grad``. It is called
                once before the switch and twice after it.

        Raises:
            RuntimeError: For sparse gradients, inside ``perturbed()``, or for a closure under a gradient scaler, which
                unscales before the closure makes the gradients: use :meth:`perturbed` there.
        """
        if self._is_perturbed:
            raise RuntimeError("step() inside perturbed() would update w + ε; leave the `with` block first.")
        loss = None
        self._catch_up()
        self._share_with_base()
        if closure is not None:
            refuse_closure()
            with torch.enable_grad():
                loss = closure()
            if self.perturbing:
                self._second_pass(closure)
        params, grads = self._params_and_gradients()
        if self._is_state_initialization(grads):
            self.base_optimizer.step()
            return loss
        if grads and closure is None and self.attached is not None and self.perturbing and self._probe_norm is None:
            is_usable = run_scaled(self.attached.run, lambda: self._params_and_gradients()[1])
            params, grads = self._params_and_gradients() if is_usable else ([], [])
        if not grads:
            self._coming_norms = self._probe_norm = None
            return loss
        self._warn_if_progress_is_unknown()
        norm = global_norm(grads)
        position = self._device_position(params)
        evaluations = 1 if self._probe_norm is None else 2
        if self._probe_norm is None or self._coming_norms is None:
            self._alphas = self._alphas_now(params)
            self._norms, self._rescaled = (norm, 0.0), (1.0, 1.0)
        else:
            self._norms, self._rescaled = self._coming_norms, (self._probe_norm, global_norm([probe(grads)]))
        unusable: Tensor | int = 0
        if self.phase == "pugd":
            unusable = self._step_after_switch(params, grads, norm)
        else:
            step_base(self.base_optimizer)
        if position is None:
            self._unusable = unusable + self._unusable
        else:
            position.advance(evaluations, unusable)
        self._finish_step(evaluations, norm if self.phase == "sgd" else None)
        self._coming_norms = self._probe_norm = None
        if self.attached is not None:
            self.attached.forget()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients.

        Raises:
            RuntimeError: Inside ``perturbed()``, where it would silently drop α_s·g.
        """
        if self._is_perturbed and not self._closure_clears:
            raise RuntimeError(
                "zero_grad() inside perturbed() would drop α_s·g, the first pass's share; call it after step()."
            )
        super().zero_grad(set_to_none)
        self._coming_norms = self._probe_norm = None
        if self.attached is not None:
            self.attached.forget()

    def _put_back_cleared(self, params: list[Tensor], firsts: list[Tensor], versions: list[int]) -> None:
        """Add α_s·g again where it was taken away inside ``perturbed()``, as ``model.zero_grad()`` does."""
        cleared = [
            (param, first)
            for param, first, version in zip(params, firsts, versions, strict=True)
            # DistributedDataParallel replaces a gradient too, but by what was added to this one
            if param.grad is None
            or (param.grad is not first and first._version == version and not param.grad.requires_grad)
        ]
        if not cleared:
            return
        self._warn_once(
            f"{len(cleared)} gradients were cleared inside perturbed(), by model.zero_grad() for instance, which drops "
            "α_s·g, the first pass's share; it was added again. Call the optimizer's zero_grad() after step() instead."
        )
        with torch.no_grad():
            for param, first in cleared:
                param.grad = first if param.grad is None else param.grad + first

    def _second_pass(self, closure: Callable[[], Any]) -> None:
        """Call the closure at w + ε and add α_s·g to the gradients it leaves, whether it cleared them or not."""
        with self._at_w_plus_epsilon() as (params, grads):
            # DDP's bucket views are overwritten by the second backward
            kept = [grad.clone() if grad._is_view() else grad for grad in grads]
            for param in params:
                param.grad = None
            self._closure_clears = True  # all there is to clear is what the closure leaves
            try:
                with torch.enable_grad():
                    closure()
            finally:
                self._closure_clears = False
                both = [(param.grad, grad) for param, grad in zip(params, kept, strict=True) if param.grad is not None]
                if both:
                    torch._foreach_add_([second for second, _ in both], [grad for _, grad in both])
                for param, grad in zip(params, kept, strict=True):
                    if param.grad is None:
                        param.grad = grad

    def _step_after_switch(self, params: list[Tensor], grads: list[Tensor], norm: Tensor) -> Tensor | int:
        """Hand the gradient, divided by its norm where the method wants that, to the base optimizer.

        Returns:
            Whether its norm is unusable.
        """
        if self.perturbing and self._probe_norm is None and self._moves():
            self._warn_once(
                "step() found no second gradient, so it takes the step on the first gradient alone. Call "
                "rts_hf.attach_second_pass(optimizer, model, criterion) once after both are made, or run the second "
                "pass inside `with optimizer.perturbed():`, or pass a closure. In transformers use RTSTrainer; a "
                "subclass of it calls super().training_step."
            )
        if not METHODS[self.method].unit_gradient:
            step_base(self.base_optimizer)
            return 0
        divisor = norm if self.perturbs_from is not None else lengthening_divisor(norm)
        return take_unit_step(self.base_optimizer, params, grads, divisor, lambda: self._buffers_like(params))

    def _moves(self) -> bool:
        """Return whether some learning rate is not zero, or on a device, which would have to be waited for."""
        rates = [group["lr"] for group in self.param_groups]
        return is_taken_over() or any(isinstance(rate, Tensor) and not rate.is_cpu for rate in rates) or any(rates)

    def has_no_gradients(self) -> bool:
        """Return whether no parameter has a gradient, or on a CPU, where it costs no wait, only zeros."""
        grads = [param.grad for group in self.param_groups for param in group["params"] if param.grad is not None]
        return not any(not grad.is_cpu or bool(grad.any()) for grad in grads)

    def _params_and_gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        pairs = [(param, param.grad) for group in self.param_groups for param in group["params"]]
        params = [param for param, grad in pairs if grad is not None]
        grads = [grad for _, grad in pairs if grad is not None]
        if {grad.layout for grad in grads} - {torch.strided}:
            raise RuntimeError(
                "RTSPUGD does not support sparse gradients; build the layer that makes them with sparse=False."
            )
        return params, grads

    def _buffers_like(self, params: list[Tensor]) -> list[Tensor]:
        """Return uninitialized tensors like ``params``, the same ones at every step: allocation is what costs."""

        forms = [(param.shape, param.stride(), param.dtype, param.device) for param in params]
        if forms != self._forms_of_buffers:
            self._buffers, self._forms_of_buffers = [torch.empty_like(param) for param in params], forms
        return self._buffers

    def _kernels_lists(self, params: list[Tensor], grads: list[Tensor], saved: list[Tensor]) -> Any:
        """Return the lists as Triton's kernels see them, or None where torch's multi-tensor operations are to do."""
        if not params or params[0].device.type not in _KERNEL_DEVICES:
            return None
        try:
            from rts_hf.optim.kernels import lists_for
        except ImportError:  # torch for a CPU, and for Windows, comes without Triton
            return None
        return lists_for(params, grads, saved, self._lists)

    # ---- Schedules and switch ----

    def _schedule(self, name: str) -> AlphaSchedule:
        lead = self._lead
        strategy = name_at(lead[f"rts_{name}"], STRATEGIES) or ""
        return AlphaSchedule(strategy, lead[f"rts_{name}_beta_min"], lead[f"rts_{name}_beta_max"])

    def _alphas_now(self, params: list[Tensor]) -> tuple[Tensor | float, Tensor | float]:
        position = self._device_position(params)
        if position is not None:
            return position.alphas()
        return self._alphas_at(progress_at(self._lead["rts_step"], self.total_steps))

    def _alphas_at(self, progress: float) -> tuple[float, float]:
        return self.radius_schedule(progress), self.scale_schedule(progress)

    def _memory(self) -> tuple[Any, ...]:
        return [*self._buffers], self._lists and self._lists.tensors()

    # ---- Warnings ----

    def _is_state_initialization(self, grads: list[Tensor]) -> bool:
        """Whether this is torch.distributed.checkpoint creating state: every lr and every gradient is zero."""
        return len(grads) > 0 and not self._moves() and not global_norm(grads)

    def _warn_if_progress_is_unknown(self) -> None:
        told = self.switch.settings()
        waits = told.get("at", told.get("unit_from", 0))
        constant = self.radius_schedule.strategy == self.scale_schedule.strategy == "constant"
        if self.total_steps is None and (not constant or isinstance(waits, float)):
            self._warn_once(
                "total_steps is unknown, so the schedules stand at their first value"
                + (" and what begins at a share of the run never does" if isinstance(waits, float) else "")
                + "; pass total_steps=..., or set optimizer.total_steps."
            )
