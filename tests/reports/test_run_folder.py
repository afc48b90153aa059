"""Reading and writing the two files of a run folder."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from rts_hf.reports.run_folder import perturbed_since, read_log, read_record, was_perturbed, write_record


def test_writing_and_reading(tmp_path: Path) -> None:
    write_record(tmp_path, {"format": 1, "a": "β"})
    assert read_record(tmp_path) == {"format": 1, "a": "β"}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": 1}]}))
    assert read_log(tmp_path) == [{"step": 1}]


def test_a_record_with_nan_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    write_record(tmp_path, {"format": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_record(tmp_path, {"format": 1, "loss": float("nan")})
    assert read_record(tmp_path) == {"format": 1}


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (None, FileNotFoundError, "has no run.json; pass the folder"),
        ("{", ValueError, "is not valid JSON"),
        ("[1]", ValueError, "holds a list"),
        ('{"format": 2}', ValueError, "has format 2, but this version of rts_hf reads 1"),
    ],
)
def test_unreadable_records(tmp_path: Path, text: str | None, error: type[Exception], message: str) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(error, match=message):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("entry", "perturbed"),
    [
        ({"step": 100, "phase": 0, "epsilon_norm": 0.0, "alpha_r": 0.5}, False),
        ({"step": 100, "phase": 1, "epsilon_norm": 0.0, "alpha_r": 0.0}, False),  # the update that switched
        ({"step": 101, "phase": 1, "epsilon_norm": 0.5, "alpha_r": 0.5}, True),
        ({"step": 101, "phase": 1, "epsilon_norm": 0.0, "alpha_r": 0.0}, True),
        ({"step": 101, "phase": 1, "epsilon_norm": 0.0, "alpha_r": 0.5}, True),  # a gradient of 0 has no direction
        ({"step": 101, "phase": 1, "epsilon_norm": math.nan, "alpha_r": 0.5}, True),
        ({"step": 101, "phase": 1}, True),
        ({"loss": 1.0}, False),
    ],
)
def test_an_update_is_perturbed_by_its_place_whatever_the_perturbation_came_to(
    entry: dict[str, Any], perturbed: bool
) -> None:
    assert was_perturbed(entry, {"perturb_every": 1, "switch": {"step": 100}}) is perturbed
    assert was_perturbed(entry, {"perturb_every": 1, "switch": {"step": None}}) is False


@pytest.mark.parametrize(
    ("step", "entry", "perturbed"),
    [
        (101, {"epsilon_norm": 0.5, "alpha_r": 0.5}, True),
        (102, {"epsilon_norm": 0.0, "alpha_r": 0.5}, False),
        (102, {"epsilon_norm": 0.0, "alpha_r": 0.0}, False),
        (104, {"epsilon_norm": 0.0, "alpha_r": 0.0}, True),
        (104, {"epsilon_norm": math.inf, "alpha_r": 0.5}, True),
        (105, {"epsilon_norm": None, "alpha_r": 0.5}, False),
        # Updates that a gradient scaler skipped moved the place.
        (105, {"epsilon_norm": 0.5, "alpha_r": 0.5}, True),
        (104, {"epsilon_norm": 0.0, "alpha_r": 0.5}, False),
    ],
)
def test_perturbed_updates_among_others_of_the_second_phase(step: int, entry: dict[str, Any], perturbed: bool) -> None:
    optimizer = {"perturb_every": 3, "switch": {"step": 100}}
    assert was_perturbed({"step": step, "phase": 1, **entry}, optimizer) is perturbed


def test_perturbed_updates_are_counted_from_entry_to_entry() -> None:
    def entry(step: int, evaluations: int | None, **more: float) -> dict[str, Any]:
        return {"step": step, "loss": 1.0, "gradient_evaluations": evaluations, **more}

    log = [
        entry(10, 10),
        entry(20, 23, sharpness=0.1),
        {"step": 25, "eval_loss": 1.0, "gradient_evaluations": 33},  # an evaluation takes no mean
        entry(30, 43, sharpness=0.1),
        entry(40, None, sharpness=0.1),
        entry(50, 73, sharpness=0.1),  # how many came before 40, the log does not tell
        entry(60, 85, sharpness=0.1),
    ]
    assert perturbed_since(log) == [3, 10, None, None, 2]
    assert perturbed_since([{"step": 10, "loss": 1.0, "sharpness": 0.1}]) == [None]
