"""Reading and writing the two files of a run folder."""

import json
from pathlib import Path

import pytest

from rts_hf.run_folder import read_log, read_record, write_record


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
        ("{", ValueError, "is not JSON"),
        ("[1]", ValueError, "holds a list"),
        ('{"format": 2}', ValueError, "has format 2, but this version of rts_hf reads 1"),
    ],
)
def test_unreadable_records(tmp_path: Path, text: str | None, error: type[Exception], message: str) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(error, match=message):
        read_record(tmp_path)
