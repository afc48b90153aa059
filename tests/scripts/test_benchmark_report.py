"""README's benchmark is what the committed record says."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from benchmark import report as benchmark_report
from benchmark.report import GPU_RECORD, MEASURES, measure, summary, write_page
from benchmark.timers import BEGIN, END, Figure

from rts_hf.reports.comparison import read_rows

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "model_cards" / "benchmark" / "benchmark.json"


def test_readme_is_made_of_the_record(tmp_path: Path) -> None:
    folder = tmp_path / "benchmark"
    folder.mkdir()
    for kept in [*RECORD.parent.glob("*.json"), *RECORD.parent.glob("*.csv")]:
        (folder / kept.name).write_bytes(kept.read_bytes())
    text = (ROOT / "model_cards" / "benchmark" / "README.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text(text, encoding="utf-8")
    paths = write_page(folder / "benchmark.json")
    assert (folder / "README.md").read_text(encoding="utf-8") == text
    assert {path.name for path in paths} == {"README.md", "scaling.png", "scaling.svg"}
    kept = json.loads(RECORD.read_text(encoding="utf-8"))
    names = {each["name"] for each in kept["figures"]}
    # which are not a figure with a target each, or of a GPU alone
    without = {"optimizer", "host", "scaling", "profile", "variants", "captured"}
    several = {"optimizer_over_sam", "optimizer_over_streaming", "host_over_sam", "host_over_sgd"}
    several |= {"trainer_sgd", "trainer_perturbed"}
    assert names == {*several, *MEASURES} - without
    assert {"scaling", "profile", "updates", "processes"} <= set(kept)


def test_the_command_measures_what_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def fake(device: str) -> list[Figure]:
        asked.append(device)
        return [Figure("operations", "operations", 31, 40)]

    monkeypatch.setattr(benchmark_report, "MEASURES", {**MEASURES, "operations": fake})
    output = tmp_path / "measured.json"
    monkeypatch.setattr(sys, "argv", ["benchmark", "--figures", "operations", "--output", str(output)])
    runpy.run_path(str(ROOT / "scripts" / "benchmark" / "__main__.py"), run_name="__main__")
    assert asked == ["cpu"]
    assert "| operations | ≤ 40 | 31 | met |" in capsys.readouterr().out
    assert json.loads(output.read_text())["figures"][0]["value"] == 31

    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}old{END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["benchmark", "--from_record", "--record", str(output)])
    runpy.run_path(str(ROOT / "scripts" / "benchmark" / "__main__.py"), run_name="__main__")
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| operations | ≤ 40 | 31 | met |" in text


def test_slopes_and_processes_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [{"parameters": x, "tensors": x, "perturbed": x / 1e6, "plain": x / 2e6} for x in (10, 100, 1000)]
    monkeypatch.setattr(
        benchmark_report, "measure_scaling", lambda *args, **kwargs: {"sizes": points, "tensors": points}
    )
    one = {name: {"bytes": 0.0, "seconds": 0.1} for name in ("sgd", "averaged once", "averaged twice")}
    two = {name: {"bytes": size, "seconds": 0.2} for name, size in zip(one, (10.0, 10.0, 20.0), strict=True)}
    monkeypatch.setattr(benchmark_report.benchmark_processes, "measure", lambda count, **_: one if count == 1 else two)
    measured = measure(["all_reduce", "scaling"])
    text = summary({**measured, "remark": "On a slow day."})
    assert "over interleaved repeats. On a slow day.\n" in text
    assert "the power 1.00 of the parameters, and 1.00 of the number" in text
    assert "| averaged once | 100 | 200 |" in text
    assert "| ≤ 1.02 | 1 | met: 2 by default |" in text


def test_what_the_table_of_variants_needs() -> None:
    rows = read_rows(RECORD.with_name("variants.csv"))
    kept = json.loads(RECORD.read_text(encoding="utf-8"))
    assert "| `perturb_every` 5 | " in summary(kept, rows)
    with pytest.raises(ValueError, match=r"no times of updates; measure them with scripts/benchmark"):
        summary({name: value for name, value in kept.items() if name != "updates"}, rows)


def test_a_gpus_record_is_shown_too() -> None:
    text = (ROOT / "model_cards" / "benchmark" / "README.md").read_text(encoding="utf-8")
    shown = text[text.index(BEGIN) : text.index(END)]
    assert shown.endswith(f"On a GPU:\n\n{summary(json.loads((RECORD.with_name(GPU_RECORD)).read_text()))}\n\n")
