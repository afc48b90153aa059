"""What a run costs around its passes: the Trainer, the input pipeline, the start, the traffic between processes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
import PIL.Image
import torch
from benchmark.optimizer import ALWAYS
from benchmark.timers import Figure, interleaved, medians, ratio
from torch.nn.functional import cross_entropy
from torch.utils.benchmark import timer
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from rts_hf.data.batches import collate
from rts_hf.data.loading import DataBundle, load_data
from rts_hf.models.classifiers import build_model
from rts_hf.optim.optimizer import RTSPUGD
from rts_hf.optim.second_pass import keep_buffers
from rts_hf.recipes.recorded import find_recipe
from rts_hf.runs import run as run_module
from rts_hf.runs import stages
from rts_hf.runs.arguments import CommandArguments
from rts_hf.runs.run import train
from rts_hf.training.arguments import DataArguments, ModelArguments
from rts_hf.training.trainer import RTSTrainer

_JOBS = {"resnet_micro_small": "the main job", "resnet18_small": "the main job's data with `resnet18_small`"}
WARM_UP = 3  # updates of a run before its clock starts
# Runs the training command up to its first update, and leaves.
_FIRST_UPDATE = """
import os, sys
from rts_hf.runs.command_line import parse_arguments
arguments = parse_arguments(sys.argv[1:])
from rts_hf.runs.run import train
from rts_hf.training.trainer import RTSTrainer
step = RTSTrainer.training_step
def first(*args, **kwargs):
    step(*args, **kwargs)
    os._exit(0)
RTSTrainer.training_step = first
train(*arguments)
"""


def trainer_over_bare_loop(device: str = "cpu", *, repeats: int = 5, updates: int = 20) -> Figure:
    """Time perturbed updates of the main job in RTSTrainer and in a bare loop that makes the same passes.

    On a GPU, which would be done with the main job's model before it is asked for the next layer, it is a larger one.
    """
    data = load_data("digits")
    model_name = "resnet_micro_small" if device == "cpu" else "resnet18_small"
    seconds: dict[str, list[float]] = {"trainer": [], "bare loop": []}
    for _ in range(repeats):
        seconds["trainer"].append(trained(data, updates, device, model_name, switch_at=0.0)[0])
        seconds["bare loop"].append(_bare_loop(data, updates, device, model_name))
    images = updates * 64
    return Figure(
        "trainer",
        f"`RTSTrainer` images/s ÷ a bare loop's (perturbed updates of {_JOBS[model_name]})",
        ratio(seconds, "bare loop", "trainer"),
        0.95,
        "at least",
        details={name: round(images / each, 1) for name, each in medians(seconds).items()},
    )


def trainer_over_transformers(device: str = "cpu", *, repeats: int = 5, updates: int = 20) -> list[Figure]:
    """Time updates of the main job's model in RTSTrainer, plain and perturbed, and in transformers' own Trainer."""
    data = load_data("digits")
    seconds: dict[str, list[float]] = {"Trainer": [], "sgd": [], "perturbed": []}
    settings: dict[str, dict[str, Any]] = {"sgd": {"opt": "sgd"}, "perturbed": {"switch_at": 0.0}}
    for _ in range(repeats):
        seconds["Trainer"].append(_in_transformers(data, updates, device))
        for name, told in settings.items():
            seconds[name].append(trained(data, updates, device, "resnet_micro_small", **told)[0])
    words = {"sgd": 'with `opt="sgd"`', "perturbed": "whose updates are all perturbed"}
    targets = {"sgd": 1.02, "perturbed": 2.02}
    return [
        Figure(
            f"trainer_{name}",
            f"an update in `RTSTrainer` {words[name]} ÷ one in `transformers.Trainer` with SGD (the main job's model)",
            ratio(seconds, name, "Trainer"),
            targets[name],
            details=medians(seconds),
        )
        for name in settings
    ]


def data_share(device: str = "cpu", *, updates: int = 40) -> Figure:
    """Measure what share of the main job's time goes into getting batches; half of its updates are perturbed."""
    seconds, waiting = trained(load_data("digits"), updates, device, "resnet_micro_small", switch_at=0.5)
    return Figure(
        "data_share",
        "data's share of the step time in the main job",
        waiting / seconds,
        0.05,
        details={"seconds": seconds, "waiting": waiting, "updates": updates},
    )


class _Clock(TrainerCallback):
    """Times the updates of a run after the first ones."""

    seconds = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == WARM_UP:
            self.seconds = -timer()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps:
            self.seconds += timer()


def _in_transformers(data: DataBundle, updates: int, device: str) -> float:
    clock, model = _Clock(), _model(data, "resnet_micro_small")
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=WARM_UP + updates, per_device_train_batch_size=64, disable_tqdm=True, report_to="none",
            save_strategy="no", logging_strategy="no", max_grad_norm=0.0, use_cpu=device == "cpu", seed=42,
            dataloader_pin_memory=device != "cpu", remove_unused_columns=False,
        )  # fmt: skip
        sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        Trainer(
            model=model, args=arguments, train_dataset=data.train, data_collator=collate, callbacks=[clock],
            optimizers=(sgd, None),
        ).train()  # fmt: skip
    return clock.seconds


def trained(data: DataBundle, updates: int, device: str, model_name: str, **settings: Any) -> tuple[float, float]:
    """Return the seconds of some updates in RTSTrainer, and those of them that it waited for batches.

    They are the paper's method's where the settings say nothing else.
    """
    clock = _Clock()
    waits: list[float] = []

    class Waiting(RTSTrainer):
        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            samples = super().get_batch_samples(*args, **kwargs)
            waits.append(time.perf_counter() - begin)
            return samples

    with TemporaryDirectory() as folder:
        arguments = CommandArguments(
            output_dir=folder, max_steps=WARM_UP + updates, eval_strategy="no", save_strategy="no",
            load_best_model_at_end=False, metric_for_best_model=None, disable_tqdm=True, logging_strategy="no",
            use_cpu=device == "cpu", **{**find_recipe("paper").defaults({"opt": "rts_pugd", **settings}), **settings},
        )  # fmt: skip
        model = _model(data, model_name)
        Waiting(model=model, args=arguments, train_dataset=data.train, data_collator=collate, callbacks=[clock]).train()
    return clock.seconds, sum(waits[WARM_UP:])


def _model(data: DataBundle, name: str) -> Any:
    return build_model(name, label_names=data.label_names, image_size=data.image_size, mean=data.mean, std=data.std)


def _bare_loop(data: DataBundle, updates: int, device: str, model_name: str) -> float:
    torch.manual_seed(0)
    model: Any = _model(data, model_name).timm_model.to(device)
    model.train()
    settings = {**ALWAYS, "total_steps": WARM_UP + updates}
    optimizer = RTSPUGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, **settings)
    begin = done = 0.0
    while done < WARM_UP + updates:
        for batch in DataLoader(data.train, batch_size=64, shuffle=True, collate_fn=collate):
            if done == WARM_UP:
                begin = timer()
            x, y = batch["pixel_values"].to(device), batch["labels"].to(device)
            cross_entropy(model(x), y).backward()
            with optimizer.perturbed(), keep_buffers(model):
                cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            if done == WARM_UP + updates:
                break
    return timer() - begin


def input_pipeline(*, repeats: int = 5, images: int = 2048) -> Figure:
    """Time an epoch of 32-pixel PNGs, each with its own crop and flip, against ``with_transform``, on one core."""
    from datasets import load_dataset
    from torchvision.transforms import v2

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with TemporaryDirectory() as folder:
            _write_images(Path(folder) / "images", images)
            begin = time.perf_counter()
            data = load_data(f"{folder}/images", augmentation="crop_flip", validation_fraction=0.01)
            once = time.perf_counter() - begin
            rows = load_dataset("imagefolder", data_dir=f"{folder}/images", split="train", cache_dir=f"{folder}/cache")
            transform = v2.Compose(
                [
                    v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.ToImage(),
                    v2.ToDtype(torch.float32, scale=True), v2.Normalize(data.mean, data.std),
                ]
            )  # fmt: skip
            theirs = rows.with_transform(
                lambda batch: {
                    "pixel_values": [transform(image.convert("RGB")) for image in batch["image"]],
                    "labels": batch["label"],
                }
            )
            loaders = {
                "ours": DataLoader(data.train, batch_size=128, shuffle=True, collate_fn=collate),
                "with_transform": DataLoader(theirs, batch_size=128, shuffle=True),
            }
            counts = {"ours": len(data.train), "with_transform": len(theirs)}

            def epoch(name: str) -> Callable[[], int]:
                return lambda: sum(1 for _ in loaders[name])

            seconds = interleaved({name: epoch(name) for name in loaders}, repeats=repeats)
    finally:
        torch.set_num_threads(threads)
    rates = {name: [1 / (counts[name] / each) for each in values] for name, values in seconds.items()}
    speeds = {f"{name}, images/s": round(1 / each) for name, each in medians(rates).items()}
    return Figure(
        "pipeline",
        "input pipeline images/s ÷ `with_transform` per image, one core (32-px PNGs)",
        ratio(rates, "with_transform", "ours"),
        6,
        "at least",
        note=f"after decoding once, at {images / once:.0f} images/s",
        details={**speeds, "seconds to decode once": round(once, 3)},
    )


def start(*, repeats: int = 3, warm_up: int = 1) -> Figure:
    """Time the main job from its command to its first update against importing torch, timm and transformers."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    with TemporaryDirectory() as folder:

        def run(*words: str) -> Callable[[], Any]:
            return lambda: subprocess.run(
                [sys.executable, *words], env=environment, cwd=folder, check=True, capture_output=True
            )

        job = run("-c", _FIRST_UPDATE, "--opt", "rts_pugd", "--output_dir", "run", "--overwrite")
        imports = run("-c", "import torch, timm, transformers")
        seconds = interleaved({"job": job, "imports": imports}, repeats=repeats, warm_up=warm_up)
    return Figure(
        "start",
        "from command to first update of the main job ÷ `import torch, timm, transformers`",
        ratio(seconds, "job", "imports"),
        1.5,
        details=medians(seconds),
    )


def closing(*, updates: int = 12) -> Figure:
    """Time what follows the training of a small fine-tuning run, validation and test left out, against the training."""
    seconds: dict[str, float] = dict.fromkeys(("fit", "measure", "report", "whole splits"), 0.0)

    def timed(function: Callable[..., Any], name: Callable[..., str | None]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            begin = time.monotonic()
            result = function(*args, **kwargs)
            if key := name(*args):
                seconds[key] += time.monotonic() - begin
            return result

        return call

    with TemporaryDirectory() as folder, contextlib.ExitStack() as patches:
        for stage in ("fit", "measure", "report"):
            call = timed(getattr(run_module, stage), lambda *_, stage=stage: stage)
            patches.enter_context(mock.patch.object(run_module, stage, call))
        whole = timed(stages._measure, lambda trainer, split, name: None if name == "train" else "whole splits")
        patches.enter_context(mock.patch.object(stages, "_measure", whole))
        paper = find_recipe("paper").settings
        arguments = CommandArguments(output_dir=folder, max_steps=updates, disable_tqdm=True, **paper)
        found = train(
            ModelArguments(model="tf_efficientnet_lite0"),
            DataArguments(dataset="photo_patches", image_size=96, max_train_samples=512, max_eval_samples=64),
            arguments,
        )
    sharpness = found["sharpness"] or {}
    after = seconds["measure"] + seconds["report"] - seconds["whole splits"]
    return Figure(
        "closing",
        f"what follows the training, validation and test left out ÷ the training ({updates} updates of "
        "`tf_efficientnet_lite0` at 96 px)",
        after / seconds["fit"],
        0.1,
        note=f"{after:.1f} s beside {seconds['fit']:.1f} s; sharpness on {sharpness.get('images', 'no')} images",
        details={**seconds, "sharpness": sharpness.get("images"), "train": found["metrics"].get("train")},
    )


def _write_images(folder: Path, count: int) -> None:
    """Write smooth pictures with some noise, of two classes, as PNG."""
    generator = np.random.default_rng(0)
    ramp = np.linspace(0, 1, 32)
    for number in range(count):
        a, b, c = generator.uniform(0, 6, (3, 3))
        waves = np.sin(a * ramp[:, None, None] + b * ramp[None, :, None] + c) * 100 + 128
        pixels = (waves + generator.normal(0, 8, (32, 32, 3))).clip(0, 255).astype(np.uint8)
        path = folder / f"class_{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(pixels).save(path)
