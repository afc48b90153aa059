"""The package's layout: which file may import which, and how long a file may be."""

import ast
from pathlib import Path

import pytest

import rts_hf

PACKAGE = Path(rts_hf.__file__).parent
# A row imports only from the rows it names; leaves import nothing of the package.
LAYOUT: dict[str, set[str]] = {
    "files": set(),
    "schedules": set(),
    "switching": set(),
    "budget": {"switching"},
    "perturbation": set(),
    "modules": set(),
    "second_pass": {"modules"},
    "window": {"second_pass"},
    "scaling": set(),
    "small_image": set(),
    "metrics": {"faults"},
    "timing": {"switching"},
    "compiling": set(),
    "parallelism": set(),
    "safe_saving": set(),
    "bases": {"parallelism", "timing"},
    "unit_step": {"perturbation"},
    "optimizer": {"bases", "parallelism", "perturbation", "scaling", "schedules", "switching", "timing", "unit_step"},
    "unwrapping": {"optimizer"},
    "registration": {"optimizer"},
    "checks": set(),
    "temperon_baseline": {"switching"},
    "optimizer_names": {"switching", "temperon_baseline"},
    "config": {
        "checks", "compiling", "noise", "optimizer_names", "parallelism", "schedules", "splits", "switching",
        "window",
    },
    "sharpness": set(),
    "run_sharpness": {"sharpness"},
    "landscape": set(),
    "settings": {"config"},
    "recipe": {"optimizer_names"},
    "recipes": {"config", "recipe"},
    "columns": set(),
    "connection": set(),
    "photo_patches": set(),
    "embedded": {"photo_patches", "splits"},
    "sources": {"connection", "embedded", "splits"},
    "splits": set(),
    "batches": {"columns"},
    "noise": set(),
    "data": {"batches", "columns", "noise", "sources", "splits"},
    "checkpoints": {"backbones", "files", "small_image"},
    "backbones": {"small_image"},
    "models": {"backbones", "checkpoints", "small_image"},
    "sums": set(),
    "faults": set(),
    "gradient_norm": {"modules", "perturbation"},
    "flow": set(),
    "resuming": {"config", "files", "optimizer_names", "run_folder"},
    "draws": set(),
    "resumable": {"config", "draws", "flow", "resuming", "safe_saving", "settings", "sums"},
    "trainer": {
        "checks", "compiling", "config", "faults", "gradient_norm", "metrics", "optimizer", "parallelism", "resumable",
        "resuming", "second_pass", "sums", "unwrapping", "window",
    },
    "run_folder": {"files"},
    "confusion": set(),
    "record": {"config", "data", "models", "recipes", "resuming", "run_folder", "settings", "trainer"},
    "figures": {"confusion", "run_folder", "schedules"},
    "figures_of_runs": {"figures", "run_folder", "schedules"},
    "landscapes_of_runs": {"config", "console", "data", "landscape", "run_folder"},
    "pictures_of_runs": {"figures_of_runs", "landscapes_of_runs", "run_folder"},
    "card_text": {"run_folder"},
    "hub": {"card_text", "comparison_tables", "confusion", "faults", "files", "run_folder", "schedules"},
    "publication": {"files", "hub", "resuming", "run_folder"},
    "demo": set(),  # runs without the package, in a Space
    "space": {"card_text", "files", "run_folder", "small_image"},
    "publishing": {"connection", "files", "publication", "run_folder", "space"},
    "console": {"faults", "models", "temperon_baseline", "unwrapping"},
    "output_folder": {"config", "resuming", "run_folder"},
    "runs": {
        "checkpoints", "checks", "config", "console", "data", "faults", "figures", "flow", "hub", "metrics", "models",
        "output_folder", "publishing", "recipes", "record", "resuming", "run_folder", "run_sharpness", "settings",
        "closure_trainer", "temperon_baseline", "trainer",
    },
    "closure_trainer": {"second_pass", "temperon_baseline", "trainer"},
    "cli": {"config", "recipes"},
    "backends": {"cli", "runs"},
    "comparison": {
        "backends", "budget", "checks", "cli", "config", "files", "method", "record", "resuming", "run_folder", "runs",
        "settings", "switching", "unwrapping", "window",
    },
    "method": {"recipes"},
    "tuning": {"comparison", "method", "run_folder"},
    "comparison_tables": {"card_text"},
    "comparison_figures": {"comparison_tables", "figures"},
    "comparison_report": {"comparison_figures", "comparison_tables", "files", "hub", "run_folder"},
    "evidence": {
        "card_text", "comparison_figures", "comparison_tables", "evidence_records", "figures_of_runs", "files",
        "landscape", "pictures_of_runs",
    },
    "evidence_records": {"comparison_tables", "files", "landscapes_of_runs", "run_folder"},
    "benchmark": set(),
    "benchmark_optimizer": {"benchmark", "optimizer", "second_pass", "small_image"},
    "benchmark_training": {
        "batches", "benchmark", "config", "data", "models", "optimizer", "runs", "second_pass", "trainer",
    },
    "benchmark_processes": {"batches", "benchmark", "config", "data", "models", "trainer"},
    "benchmark_scaling": {"benchmark", "figures_of_runs", "optimizer"},
    "benchmark_profile": {
        "benchmark", "benchmark_optimizer", "benchmark_training", "data", "optimizer", "second_pass", "trainer",
    },
    "benchmark_variants": {
        "batches", "benchmark", "comparison_tables", "data", "models", "optimizer", "run_folder", "second_pass",
        "window",
    },
    "benchmark_report": {
        "benchmark", "benchmark_optimizer", "benchmark_processes", "benchmark_profile", "benchmark_scaling",
        "benchmark_training", "benchmark_variants", "comparison_tables", "files",
    },
    "compare": {"backends", "comparison", "comparison_report", "method", "tuning"},
}  # fmt: skip


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "rts_hf":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("rts_hf.")}
    return found


def test_every_file_is_in_the_table() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} == set(LAYOUT)


@pytest.mark.parametrize("name", LAYOUT)
def test_a_file_imports_what_its_row_names(name: str) -> None:
    assert imported(PACKAGE / f"{name}.py") <= LAYOUT[name]


@pytest.mark.parametrize("name", LAYOUT)
def test_a_file_holds_one_concept(name: str) -> None:
    lines = len((PACKAGE / f"{name}.py").read_text(encoding="utf-8").splitlines())
    assert lines <= 400


def test_every_module_has_a_test_file() -> None:
    tests = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    assert set(LAYOUT) <= tests
