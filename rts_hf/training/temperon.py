"""Temperon (arXiv 2609.17575) as an optimizer of the training command: a baseline for comparisons."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import SGD, Optimizer

from rts_hf.optim.switches import FixedSwitch
from rts_hf.upstream import take

NAME = "temperon"


class TailSwitch(FixedSwitch):
    """Where Temperon's tail begins, which it rounds to the nearest step.

    Args:
        at: Share of the run before the tail, in [0, 1].
    """

    def start(self, total_steps: int | None) -> int | None:
        """Return the first step of the tail, or None where there is none, or the horizon is unknown."""
        return None if total_steps is None or self.at == 1.0 else round(self.at * total_steps)


class TemperonOptimizer(Optimizer):
    """The package's ``Temperon`` around SGD with Nesterov momentum, as an optimizer whose ``step()`` comes after the
    gradient.

    Temperon drives a closure, once a step and twice in the tail of the run. The closure's first call takes the gradient
    that is there when ``step()`` is called; a training loop sets :attr:`second_pass` to what computes it anew.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate, at least 0.
        momentum: Of SGD.
        weight_decay: Of SGD.
        tail_frac: Share of the run that the tail owns, in [0, 1].
        rho: Radius of the perturbation in the tail, at least 0.
        total_steps: Steps of the run; may be set later, before the first step.

    Raises:
        ImportError: If the package is not installed.
        ValueError: For a setting outside its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        tail_frac: float = 0.3,
        rho: float = 0.05,
        total_steps: int | None = None,
    ) -> None:
        from temperon import Temperon

        own: dict[str, Any] = {"momentum": momentum, "weight_decay": weight_decay, "nesterov": momentum > 0}
        super().__init__(params, {"lr": lr, **own, "temperon_step": 0})
        self._base: SGD = SGD(self.param_groups, lr, **own)
        self._create = lambda steps: Temperon(self._base, total_steps=steps, tail_frac=tail_frac, rho=rho)
        self.param_groups, self.state = self._base.param_groups, self._base.state
        self.tail_frac = tail_frac
        self.total_steps = total_steps
        self.second_pass: Callable[[], torch.Tensor] | None = None
        self._create(1 if total_steps is None else total_steps)  # which refuses what it does not take

    @property
    def switch(self) -> TailSwitch:
        """Where the perturbed phase begins, as budgets of gradient evaluations count it."""
        return TailSwitch(float(1.0 - self.tail_frac))

    @property
    def gradient_evaluations(self) -> int:
        """Gradients taken so far."""
        done = int(self.param_groups[0]["temperon_step"])
        start = self.switch.start(self.total_steps)
        return done if start is None else done + max(0, done - start)

    def step(self, closure: Any = None) -> Any:
        """Let Temperon make its step from the gradient that is there; without one, nothing happens or counts.

        Raises:
            ValueError: If a closure is given, or the tail has begun and there is no :attr:`second_pass`, or the length
                of the run is not known.
        """
        if closure is not None:
            raise ValueError("closure: this optimizer takes the gradient before step(), and second_pass for the other.")
        if self.total_steps is None:
            raise ValueError("total_steps=None: Temperon's tail has no place in a run of unknown length; set it.")
        if all(parameter.grad is None for group in self.param_groups for parameter in group["params"]):
            return  # a training loop has dropped a gradient that was not finite
        temperon = self._create(self.total_steps)
        temperon.step_count = self.param_groups[0]["temperon_step"]
        passes = iter((lambda: torch.zeros(()), self._again))
        temperon.step(lambda: next(passes)())
        for group in self.param_groups:
            group["temperon_step"] = temperon.step_count

    def restart(self) -> None:
        """Begin a run anew."""
        for group in self.param_groups:
            group["temperon_step"] = 0

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a saved state, and share it with SGD again."""
        super().load_state_dict(state_dict)
        self._base.param_groups, self._base.state = self.param_groups, self.state

    def _again(self) -> torch.Tensor:
        if self.second_pass is None:
            raise ValueError("second_pass=None: the tail has begun; set what computes the gradient anew.")
        return self.second_pass()


def register_temperon() -> None:
    """Make timm's registry know the baseline, which is there only where it is asked for.

    Raises:
        ValueError: If the package is not installed.
    """
    registry, entry = take("timm", "default_registry"), take("timm", "OptimInfo")
    try:
        import temperon  # noqa: F401
    except ImportError as error:
        raise ValueError(f"opt={NAME!r} needs a package ({error}); pip install 'rts_hf[compare]'.") from error
    if NAME not in registry.list_optimizers():
        registry.register(
            entry(
                name=NAME,
                opt_class=TemperonOptimizer,
                description="SGD whose last part is SAM, of the temperon package",
                has_momentum=True,
            )
        )
