"""The benchmark as a whole: which figures there are, and what its page shows of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmark import breakdown as benchmark_profile
from benchmark import optimizer as benchmark_optimizer
from benchmark import processes as benchmark_processes
from benchmark import training as benchmark_training
from benchmark import variants as benchmark_variants
from benchmark.scaling import draw_scaling, measure_scaling, slope
from benchmark.timers import BEGIN, END, Figure, read_figures, record, table

from rts_hf.files import read_json_object, replace_part
from rts_hf.reports.comparison import read_rows

GPU_RECORD = "benchmark-gpu.json"
VARIANTS = "variants.csv"


def _processes(device: str) -> list[Figure]:
    return [benchmark_processes.bytes_averaged(benchmark_processes.measure(2))]


# By name: what measures it on a device, and gives one figure or several
MEASURES: Mapping[str, Callable[[str], list[Figure]]] = MappingProxyType(
    {
        "update": lambda device: [benchmark_optimizer.update_over_two_passes(device)],
        "before_switch": lambda device: [benchmark_optimizer.update_before_switch(device)],
        "optimizer": benchmark_optimizer.optimizer_part,
        "host": lambda device: benchmark_optimizer.host_time(),
        "operations": benchmark_optimizer.dispatched_operations,
        "captured": benchmark_optimizer.captured_update,
        "memory": lambda device: [benchmark_optimizer.extra_memory(device)],
        "synchronizations": lambda device: [benchmark_optimizer.synchronizations(device)],
        "trainer": lambda device: [
            benchmark_training.trainer_over_bare_loop(device),
            *benchmark_training.trainer_over_transformers(device),
        ],
        "pipeline": lambda device: [benchmark_training.input_pipeline()],
        "data_share": lambda device: [benchmark_training.data_share(device)],
        "start": lambda device: [benchmark_training.start()],
        "closing": lambda device: [benchmark_training.closing()],
        "all_reduce": _processes,
        "scaling": lambda device: [],
        "profile": lambda device: [],
        "variants": lambda device: [],
    }
)


def measure(names: Sequence[str], device: str = "cpu") -> dict[str, Any]:
    """Measure figures, and return their record as JSON takes it.

    Args:
        names: Of :data:`MEASURES`.
        device: Type of the device.
    """
    figures = list[Figure]()
    more: dict[str, Any] = {}
    for name in MEASURES:
        if name not in names:
            continue
        print(f"{name} …", file=sys.stderr, flush=True)
        figures += MEASURES[name](device)
        if name == "scaling":
            more["scaling"] = measure_scaling(device, progress=lambda text: print(f"  {text}", file=sys.stderr))
        if name == "profile":
            more["profile"] = {
                "optimizer": benchmark_profile.optimizer_profile(device),
                "trainer": benchmark_profile.trainer_profile(device),
            }
        if name == "variants":
            more["updates"] = benchmark_variants.time_updates(device)
        if name == "all_reduce":
            more["processes"] = {"1": benchmark_processes.measure(1), "2": figures[-1].details}
    return record(figures, device, **more)


def summary(measured: Mapping[str, Any], variants: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the table of a record's figures, what they were measured on, and what else was measured, in Markdown.

    Args:
        measured: The record.
        variants: Results of the cheaper variants, if there are any.

    Raises:
        ValueError: If another version wrote the record, or it has no times for the variants.
    """
    machine = measured["machine"]
    lines = [
        table(read_figures(measured)),
        "",
        f"Measured on {machine['device']}, {machine['threads']} threads, torch {machine['torch']}, Python "
        f"{machine['python']}; ratios are medians over interleaved repeats.",
    ]
    if "remark" in measured:
        lines[-1] += f" {measured['remark']}"
    if profile := measured.get("profile"):
        lines += ["", *_profile(profile)]
    if scaling := measured.get("scaling"):
        sizes, tensors = slope(scaling["sizes"], "parameters"), slope(scaling["tensors"], "tensors")
        lines += [
            "",
            f"The optimizer's part grows as the power {sizes:.2f} of the parameters, and {tensors:.2f} of the number "
            "of tensors (fitted to the last three points).",
        ]
    if processes := measured.get("processes"):
        lines += ["", "| ms an update (`resnet18_small`, batch 32 a process) | 1 process | 2 processes |"]
        lines += ["| --- | ---: | ---: |"]
        for name, each in processes["2"].items():
            alone = processes["1"][name]["seconds"]
            lines.append(f"| {name} | {1e3 * alone:.0f} | {1e3 * each['seconds']:.0f} |")
    if variants:
        if "updates" not in measured:
            raise ValueError("the record has no times of updates; measure them with scripts/benchmark.")
        lines += ["", benchmark_variants.table(variants, measured["updates"])]
    return "\n".join(lines)


def _profile(profile: Mapping[str, Any]) -> list[str]:
    lines = [
        "| optimizer part of a perturbed update | transfers | ms | ÷ streaming them |",
        "| --- | ---: | ---: | ---: |",
    ]
    for each in profile["optimizer"]:
        ratio = "–" if each["streaming"] is None else f"{each['streaming']:.2f}"
        lines.append(f"| {each['part']} | {each['transfers'] or '–'} | {1e3 * each['seconds']:.3g} | {ratio} |")
    told = [f"{name} {1e3 * seconds:.2g}" for name, seconds in profile["trainer"].items()]
    return [*lines, "", f"A perturbed update of the main job in `RTSTrainer`, in ms: {', '.join(told)}."]


def write_page(record_path: str | Path) -> list[Path]:
    """Write the benchmark's part of the README beside the record, and the scaling plot, and return what was written.

    Args:
        record_path: The record; beside it may also lie one of a GPU, and the results of the cheaper variants.

    Raises:
        ValueError: If another version wrote a record, a part of one is missing, or the README has no such part.
    """
    folder = Path(record_path).parent
    page = folder / "README.md"
    measured = read_json_object(Path(record_path))
    variants = read_rows(folder / VARIANTS) if (folder / VARIANTS).is_file() else []
    told = summary(measured, variants)
    if (folder / GPU_RECORD).is_file():
        told += f"\n\nOn a GPU:\n\n{summary(read_json_object(folder / GPU_RECORD))}"
    replace_part(page, BEGIN, END, f"\n\n{told}\n\n")
    return [page, *(draw_scaling(folder / "scaling", measured["scaling"]) if "scaling" in measured else [])]
