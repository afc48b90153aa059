"""Two processes take the same updates as one, with whole and with sharded parameters."""

from __future__ import annotations

import pytest
from commands_for_tests import run_worker
from distributed_worker import SCENARIOS


@pytest.fixture(scope="module")
def output() -> str:
    return run_worker("distributed_worker.py")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_two_processes_equal_one(scenario: str, output: str) -> None:
    assert f"{scenario} passed" in output, output
