"""A run that is killed, or whose disk is full, goes on as if nothing had been; test_kill_matrix.py has many more."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands_for_tests import RESUME, Ended, Server, differences, words_of

from rts_hf.reports.run_folder import read_record
from rts_hf.training.checkpoints import MARKER_NAME, what_is_missing


def words_for(processes: int, *more: str) -> list[str]:
    pictures = [] if processes == 1 else ["--draw_figures", "false"]  # more work than the training
    return words_of("variance", processes, *pictures, *more)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def whole(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The folders of uninterrupted runs on one process and on two."""
    folders = {}
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"whole{processes}")
        ended = server(folder, words_for(processes), processes=processes)
        assert ended.codes == [0] * processes, ended.output
        assert 5 < read_record(folder / "run")["optimizer"]["switch"]["step"] < 20
        folders[processes] = folder / "run"
    return folders


def killed(server: Server, folder: Path, processes: int, *more: str, **plan: Any) -> Ended:
    ended = server(folder, words_for(processes, *more), plan, processes)
    assert ended.codes[plan.get("rank", 0)] == -9, ended.output
    assert f"[ended here: {plan['moment']}]" in ended.output
    return ended


def finished(server: Server, folder: Path, processes: int = 1) -> Ended:
    ended = server(folder, words_for(processes, *RESUME), processes=processes)
    assert ended.codes == [0] * processes, ended.output
    return ended


def test_kills_and_broken_checkpoints_of_one_process_lose_nothing(
    server: Server, whole: dict[int, Path], tmp_path: Path
) -> None:
    def passed_over(ended: Ended, message: str, older: int) -> None:
        assert len(re.findall(rf"^{message}", ended.output, re.M)) == 1, ended.output
        assert f"going on from checkpoint-{older}" in ended.output

    newest = tmp_path / "run" / "checkpoint-10"
    killed(server, tmp_path, 1, moment="update", at=12)
    (newest / "trainer_state.json").unlink()
    ended = killed(server, tmp_path, 1, *RESUME, moment="switched")  # from update 5, with a half-filled window
    passed_over(ended, r"checkpoint-10 is not whole \(trainer_state.json is missing", 5)
    (newest / MARKER_NAME).unlink()
    ended = killed(server, tmp_path, 1, *RESUME, moment="saving optimizer.pt", at=3)
    passed_over(ended, rf"checkpoint-10 is not whole \({MARKER_NAME} is missing", 5)
    ended = finished(server, tmp_path)
    passed_over(ended, "checkpoint-20 is not whole", 15)
    assert differences(whole[1], tmp_path / "run") == []
    assert read_record(tmp_path / "run")["resumed_at"] == [5, 15]


def test_kills_of_two_processes_lose_nothing(server: Server, whole: dict[int, Path], tmp_path: Path) -> None:
    killed(server, tmp_path, 2, moment="perturbed", at=2, rank=1)
    (tmp_path / "run" / "checkpoint-10" / "rng_state_1.pth").unlink()
    ended = killed(server, tmp_path, 2, *RESUME, moment="unmarked", at=2)
    assert "checkpoint-10 is not whole (rng_state_1.pth is missing): going on from checkpoint-5" in ended.output
    ended = finished(server, tmp_path, 2)
    assert "checkpoint-15 is not whole" in ended.output
    assert differences(whole[2], tmp_path / "run") == []
    assert read_record(tmp_path / "run")["resumed_at"] == [5, 10]


def test_a_run_killed_before_its_first_checkpoint_says_so_in_one_line(server: Server, tmp_path: Path) -> None:
    killed(server, tmp_path, 1, moment="update", at=3)
    refused = server(tmp_path, words_for(1, *RESUME))
    assert refused.codes == [1]
    assert re.fullmatch(
        r"error: .*last.*'run' holds no checkpoint; .* starts anew with --overwrite\.\n", refused.output
    )
    killed(server, tmp_path, 1, "--overwrite", moment="saving rng_state.pth")
    refused = server(tmp_path, words_for(1, *RESUME))
    assert refused.codes == [1]
    assert re.fullmatch(r"error: .*no whole checkpoint \(checkpoint-5: .*--overwrite\.\n", refused.output)


def test_a_kill_between_record_and_card_leaves_them_to_the_next_command(
    server: Server, whole: dict[int, Path], tmp_path: Path
) -> None:
    shutil.copytree(whole[1], tmp_path / "run")
    for name in ("README.md", "figures/history.png"):
        (tmp_path / "run" / name).unlink()
    assert "already finished" in finished(server, tmp_path).output
    assert differences(whole[1], tmp_path / "run") == []


def test_a_full_disk_is_an_error_and_leaves_the_checkpoint_before(
    server: Server, whole: dict[int, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    weights, optimizer = (
        (whole[1] / "checkpoint-24" / name).stat().st_size for name in ("model.safetensors", "optimizer.pt")
    )
    assert weights < optimizer - 1000
    for further, limit in ([], 4096), (RESUME, optimizer - 1000):  # no room for weights; for the optimizer's state
        plan = {"moment": "update", "at": 1 if further else 6, "file_limit": limit}
        ended = server(tmp_path, words_for(1, *further), plan)
        assert ended.codes == [1]
        assert (run / "checkpoint-10" / "model.safetensors").exists() == (limit > 4096)
        assert len(re.findall(r"^error: run/checkpoint-10 could not be saved: .*make room", ended.output, re.M)) == 1
        assert "Traceback" not in ended.output
        assert what_is_missing(run / "checkpoint-5") is None
        assert what_is_missing(run / "checkpoint-10") is not None
    assert "checkpoint-10 is not whole" in finished(server, tmp_path).output
    assert differences(whole[1], run) == []


def test_the_comparison_sees_what_differs(whole: dict[int, Path], tmp_path: Path) -> None:
    assert "model.safetensors" in differences(whole[1], whole[2])
    copy = shutil.copytree(whole[1], tmp_path / "run")
    assert differences(whole[1], copy) == []
    (copy / "README.md").unlink()
    state = json.loads((copy / "trainer_state.json").read_text())
    state["log_history"][0]["loss"] += 1e-12
    (copy / "trainer_state.json").write_text(json.dumps(state))
    assert differences(whole[1], copy) == ["README.md", "trainer_state.json"]
