"""What an update costs: time, memory, dispatched operations and waits for the device."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch
from benchmark.timers import Figure, interleaved, medians, ratio
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from rts_hf.optim.optimizer import RTSPUGD
from rts_hf.optim.second_pass import keep_buffers

# Parameter-sized reads and writes that a perturbed update needs at least, with SGD and momentum: to save w and measure
# (read w and g, write the copy), to perturb and scale (read and write both), to restore (read the copy, write w), for
# the norm of the sum (read g), for the step (read w, g and the momentum, write w and the momentum).
TRANSFERS = 3 + 4 + 2 + 1 + 5
SETTINGS: dict[str, Any] = {"lr": 1e-6, "base": "sgd", "momentum": 0.9, "weight_decay": 1e-4}
ALWAYS: dict[str, Any] = {"switch": None, "perturb_every": 1, "total_steps": 10**6}  # every update is perturbed


def update_over_two_passes(device: str = "cpu", *, repeats: int = 5, batch: int = 128) -> Figure:
    """Time a perturbed update against the two forward-backward passes in it."""
    model, x, y = _small_resnet(device, batch)
    optimizer = RTSPUGD(model.parameters(), **ALWAYS, **SETTINGS)

    def passes() -> None:
        for _ in range(2):
            cross_entropy(model(x), y).backward()
        optimizer.zero_grad()

    def update() -> None:
        cross_entropy(model(x), y).backward()
        with optimizer.perturbed(), keep_buffers(model):
            cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = interleaved({"update": update, "passes": passes}, repeats=repeats)
    return Figure(
        "update",
        f"perturbed update ÷ two forward-backward passes (`resnet18_small`, 32 px, batch {batch})",
        ratio(seconds, "update", "passes"),
        1.03,
        details=medians(seconds),
    )


def update_before_switch(device: str = "cpu", *, repeats: int = 21, batch: int = 128) -> Figure:
    """Time an update before the switch, with the variance switch listening, against the base optimizer alone."""
    model, x, y = _small_resnet(device, batch)
    listening = RTSPUGD(
        model.parameters(), switch="gradient_variance", switch_gamma=1e-12, total_steps=10**6, **SETTINGS
    )
    settings = {name: value for name, value in SETTINGS.items() if name != "base"}
    plain = timm.optim.create_optimizer_v2(model, opt="sgd", **settings)

    def update(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        def call() -> None:
            cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()

        return call

    seconds = interleaved({"listening": update(listening), "plain": update(plain)}, repeats=repeats)
    return Figure(
        "before_switch",
        f"update before the switch, its variance watched ÷ SGD alone (the same model, batch {batch})",
        ratio(seconds, "listening", "plain"),
        1.02,
        details=medians(seconds),
    )


def optimizer_part(device: str = "cpu", *, repeats: int = 9, model_name: str = "vit_base_patch16_224") -> list[Figure]:
    """Time all of a perturbed update but its passes, against pytorch_optimizer's SAM, and against streaming.

    Raises:
        ImportError: If pytorch_optimizer is not installed.
    """
    from pytorch_optimizer import SAM

    params = params_with_gradients(timm.create_model(model_name).to(device))
    copies = [torch.empty_like(param) for param in params]

    def ours(**more: Any) -> Callable[[], None]:
        optimizer = RTSPUGD(params, **ALWAYS, **more, **SETTINGS)

        def call() -> None:
            with optimizer.perturbed():
                pass
            optimizer.step()

        return call

    def stream() -> None:
        with torch.no_grad():
            torch._foreach_copy_(copies, [*params])

    default = ours()
    seconds = interleaved({"ours": default, "copy": stream}, repeats=repeats, warm_up=2)
    streaming = {"ours": seconds["ours"], "stream": [TRANSFERS / 2 * each for each in seconds["copy"]]}

    theirs_params = params_with_gradients(timm.create_model(model_name).to(device))
    theirs = SAM(theirs_params, torch.optim.SGD, rho=0.05, lr=1e-6, momentum=0.9, nesterov=True, weight_decay=1e-4)

    def sam() -> None:
        theirs.first_step(zero_grad=False)
        theirs.second_step(zero_grad=False)

    sides = {"ours beside it": default, "unfused": ours(fused=False), "sam": sam}
    beside = interleaved(sides, repeats=repeats)
    elements = sum(param.numel() for param in params)
    details = {**medians(seconds), **medians(beside), "parameters": elements, "transfers": TRANSFERS}
    what = f"of a perturbed update (`{model_name}`, {elements / 1e6:.0f} M)"
    against_fewer = ratio(streaming, "ours", "stream") * TRANSFERS / 13
    return [
        Figure(
            "optimizer_over_sam",
            f"optimizer part {what} ÷ SAM of `pytorch_optimizer`",
            ratio(beside, "ours beside it", "sam"),
            0.5,
            note=f"{ratio(beside, 'unfused', 'sam'):.2f} with `fused=False`",
            details=details,
        ),
        Figure(
            "optimizer_over_streaming",
            "the same ÷ the time to stream the bytes it must move",
            ratio(streaming, "ours", "stream"),
            1.3,
            note=f"{TRANSFERS} parameter-sized transfers; against 13 it would be {against_fewer:.2f}",
            details=details,
        ),
    ]


def host_time(*, repeats: int = 61, tensors: int = 161) -> list[Figure]:
    """Time the optimizer part of a perturbed update of many tiny tensors, which is what the host does.

    Raises:
        ImportError: If pytorch_optimizer is not installed.
    """
    from pytorch_optimizer import SAM

    def params() -> list[nn.Parameter]:
        made = [nn.Parameter(torch.ones(8)) for _ in range(tensors)]
        for param in made:
            param.grad = torch.ones(8)
        return made

    ours = RTSPUGD(params(), **ALWAYS, **SETTINGS)
    settings: dict[str, Any] = {"lr": 1e-6, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
    theirs = SAM(params(), torch.optim.SGD, rho=0.05, **settings)
    clipped = params()
    sgd = torch.optim.SGD(clipped, **settings)

    def update() -> None:
        with ours.perturbed():
            pass
        ours.step()

    def sam() -> None:
        theirs.first_step(zero_grad=False)
        theirs.second_step(zero_grad=False)

    def clip() -> None:
        nn.utils.clip_grad_norm_(clipped, 1.0)
        sgd.step()

    sides = {"ours": update, "sam": sam, "clip and sgd": clip}
    seconds = interleaved(sides, repeats=repeats, warm_up=5)
    what = f"host time of the optimizer part, {tensors} tiny tensors"
    return [
        Figure(f"host_over_{name}", f"{what} ÷ {words}", ratio(seconds, "ours", side), target, details=medians(seconds))
        for name, side, words, target in (
            ("sam", "sam", "SAM of `pytorch_optimizer`", 1.0),
            ("sgd", "clip and sgd", "clipping and torch's SGD", 1.5),
        )
    ]


def dispatched_operations(device: str = "cpu") -> list[Figure]:
    """Count the operations that the optimizer part of a perturbed update asks torch for, profiler's marks left out.

    On a CUDA device it counts the kernels that are launched, too.
    """
    counts: dict[str, dict[str, int]] = {}
    for name in ("resnet18", "resnet50"):
        params = params_with_gradients(timm.create_model(name).to(device))
        optimizer = RTSPUGD(params, **ALWAYS, **SETTINGS)
        for _ in range(2):  # the first step of a base makes its state
            with _Operations() as seen:
                with optimizer.perturbed():
                    pass
                optimizer.step()
        counts[name] = {"tensors": len(params), "operations": len(seen.names)}
        if device == "cuda":
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                with optimizer.perturbed():
                    pass
                optimizer.step()
                torch.cuda.synchronize()
            kernels = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
            counts[name]["launches"] = len(kernels)
    operations = Figure(
        "operations",
        f"dispatched operations of it on ResNet-50 ({counts['resnet50']['tensors']} tensors)",
        counts["resnet50"]["operations"],
        40,
        note=f"{counts['resnet18']['operations']} on ResNet-18's {counts['resnet18']['tensors']}; a CPU takes lists of "
        "more than 33.5 M elements in parts",
        details=counts,
    )
    if device != "cuda":
        return [operations]
    small, large = counts["resnet18"], counts["resnet50"]
    launches = Figure(
        "launches",
        f"kernels and copies on the device of it on ResNet-18 ({small['tensors']} tensors)",
        small["launches"],
        30,
        note=f"{large['launches']} on ResNet-50's {large['tensors']}",
        details=counts,
    )
    return [operations, launches]


def captured_update(device: str = "cpu", *, repeats: int = 21, batch: int = 64) -> list[Figure]:
    """Time a perturbed update as a CUDA graph, with and without the optimizer's part; elsewhere there is none."""
    if device != "cuda":
        return []
    model, x, y = _small_resnet(device, batch, "resnet_micro_small")
    settings = {**SETTINGS, **ALWAYS, "total_steps": 10**5}
    captured = {**settings, "lr": torch.tensor(SETTINGS["lr"], device=device), "capturable": True}
    optimizer = RTSPUGD(model.parameters(), **captured)
    plain = RTSPUGD(model.parameters(), **settings)

    def passes() -> None:
        optimizer.zero_grad(set_to_none=False)
        for _ in range(2):
            cross_entropy(model(x), y).backward()

    def update(optimizer: RTSPUGD = optimizer) -> None:
        optimizer.zero_grad(set_to_none=False)
        cross_entropy(model(x), y).backward()
        with optimizer.perturbed(), keep_buffers(model):
            cross_entropy(model(x), y).backward()
        optimizer.step()

    graphs = {}
    for name, call in (("update", update), ("passes", passes)):
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(aside)
        graphs[name] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[name]):
            call()
    sides = {"eager update": lambda: update(plain), **{name: graph.replay for name, graph in graphs.items()}}
    seconds = interleaved(sides, repeats=repeats)
    return [
        Figure(
            "captured",
            f"perturbed update ÷ two forward-backward passes, both CUDA graphs (`resnet_micro_small`, batch {batch})",
            ratio(seconds, "update", "passes"),
            1.1,
            note=f"{ratio(seconds, 'eager update', 'update'):.2f} times as fast as the update without a graph",
            details=medians(seconds),
        )
    ]


def extra_memory(device: str = "cpu") -> Figure:
    """Measure what is held at the end of the second backward and not by SGD, in multiples of the parameters.

    On a GPU it is what is allocated; on a CPU the tensors that Python holds, which leaves activations out.
    """
    held = {}
    for name in ("sgd", "rts_pugd"):
        gc.collect()
        model, x, y = _small_resnet(device, 2)
        parameters = sum(param.numel() * param.element_size() for param in model.parameters())
        settings = {name: value for name, value in SETTINGS.items() if name != "base"}
        more: dict[str, Any] = ALWAYS if name == "rts_pugd" else {}
        optimizer = timm.optim.create_optimizer_v2(model, opt=name, **settings, **more)
        for turn in range(3):
            seen: list[int] = []
            hook = next(model.parameters()).register_post_accumulate_grad_hook(
                lambda _, seen=seen: seen.append(_bytes_held(device))
            )
            cross_entropy(model(x), y).backward()
            if isinstance(optimizer, RTSPUGD):
                seen.clear()
                with optimizer.perturbed():
                    cross_entropy(model(x), y).backward()
            if turn == 2:
                held[name] = seen[-1]
            hook.remove()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        del optimizer, model, x, y
    return Figure(
        "memory",
        "memory at the end of the second backward, beyond SGD's with momentum ÷ parameters",
        round((held["rts_pugd"] - held["sgd"]) / parameters, 4),
        1.0,
        note="the copy of w",
        details={**held, "parameters": parameters},
    )


def synchronizations(device: str = "cpu") -> Figure:
    """Count how often an update waits for the device: what torch notes on a GPU, on a CPU the calls that would."""
    model, x, y = _small_resnet(device, 2, "resnet_micro_small")
    waits = _waits if device == "cpu" else _noted_waits
    counts: dict[str, int] = {}
    for phase, switch in (("perturbed", None), ("before the switch", "gradient_variance")):
        more: dict[str, Any] = {"switch_window": 5, "switch_init_steps": 5, "switch_gamma": 1e-12} if switch else {}
        optimizer = RTSPUGD(model.parameters(), **{**ALWAYS, "switch": switch, **more, **SETTINGS})
        for step in range(20):
            cross_entropy(model(x), y).backward()
            with waits() as seen:
                if optimizer.perturbing:
                    with optimizer.perturbed():
                        pass
                optimizer.step()
            optimizer.zero_grad()
            if step >= 10:
                counts[phase] = counts.get(phase, 0) + len(seen)
    windows = counts["before the switch"] / 2  # ten steps are two windows
    return Figure(
        "synchronizations",
        "host-device synchronisations per perturbed update",
        counts["perturbed"] / 10,
        0,
        note=f"{windows:g} a window before the variance switch fires",
        details={"steps": 10, **counts},
    )


class _Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "profiler":
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def _waits() -> Iterator[list[str]]:
    """Collect the calls inside the ``with`` block that read a tensor's values on the host."""
    seen: list[str] = []
    names = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy")
    originals = {name: getattr(Tensor, name) for name in names}

    def watched(name: str) -> Callable[..., Any]:
        def call(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            seen.append(name)
            return originals[name](self, *args, **kwargs)

        return call

    for name in names:
        setattr(Tensor, name, watched(name))
    try:
        yield seen
    finally:
        for name, original in originals.items():
            setattr(Tensor, name, original)


@contextmanager
def _noted_waits() -> Iterator[list[str]]:
    """Collect the waits for a CUDA device inside the ``with`` block, as torch's own debug mode notes them."""
    before = torch.cuda.get_sync_debug_mode()
    seen: list[str] = []
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield seen
        finally:
            torch.cuda.set_sync_debug_mode(before)
    seen += [str(each.message) for each in noted if "called a synchronizing" in str(each.message)]


def _bytes_held(device: str) -> int:
    if device != "cpu":
        # what is asked for: the allocator hands out blocks of up to a megabyte more
        return int(torch.get_device_module(device).memory_stats()["requested_bytes.all.current"])
    storages = {}
    for each in gc.get_objects():
        if type(each) in (Tensor, nn.Parameter):  # others, such as those of a compiler, hold no memory
            storage = each.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _small_resnet(device: str, batch: int, name: str = "resnet18_small") -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    import rts_hf.models.small_image  # noqa: F401  (registers the variants)

    model = timm.create_model(name, num_classes=10).to(device)
    return model, torch.randn(batch, 3, 32, 32, device=device), torch.randint(10, (batch,), device=device)


def params_with_gradients(model: nn.Module) -> list[nn.Parameter]:
    params = [*model.parameters()]
    for param in params:
        param.grad = torch.randn_like(param) * 1e-3
    return params
