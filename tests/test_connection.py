"""Whether the Hub answers is found out at once; what its client says of it holds no secret."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import datasets
import huggingface_hub
import pytest
from hub_server_for_tests import Hub
from huggingface_hub import constants

from rts_hf.connection import discreet_client, offline, why_unreachable, without_secrets


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_ETAG_TIMEOUT", raising=False)
    yield
    huggingface_hub.close_session()


def asked(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> tuple[str | None, float]:
    """Return the answer, and the seconds that it took."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    started = time.monotonic()
    return why_unreachable(), time.monotonic() - started


def test_a_closed_port_is_told_at_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.stop()
    reason, seconds = asked(monkeypatch, hub.endpoint)
    assert reason is not None
    assert reason.startswith(f"127.0.0.1:{hub.port}: ")
    assert "refused" in reason
    assert seconds < 1


def test_an_unknown_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    reason, seconds = asked(monkeypatch, "https://me:secret@hub.invalid")
    assert reason is not None
    assert "hub.invalid" in reason
    assert "secret" not in reason
    assert seconds < 2


def test_a_name_that_is_looked_up_for_ever_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def look_up(*args: Any, **kwargs: Any) -> None:
        released.wait(20)
        raise OSError("released")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    reason, seconds = asked(monkeypatch, "https://hub.invalid")
    released.set()
    assert reason is not None
    assert "no answer from hub.invalid within 1.5 s" in reason
    assert seconds < 2


@pytest.mark.parametrize("limit", [None, 1])
def test_a_server_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, limit: int | None) -> None:
    if limit is not None:
        monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", str(limit))
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", limit)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        reason, seconds = asked(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert reason is not None
    assert f"within {limit or 1.5} s; on a slow network, set HF_HUB_ETAG_TIMEOUT" in reason
    assert (limit or 1.5) <= seconds < (limit or 1.5) + 0.5


@pytest.mark.parametrize("status", [401, 404, 500])
def test_any_answer_is_an_answer(hub: Hub, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    hub.fail("HEAD", "", status=status)
    assert asked(monkeypatch, hub.endpoint)[0] is None
    assert hub.requests == [f"HEAD / -> {status}"]


@pytest.mark.parametrize("module", [constants, datasets.config])
def test_offline_mode_asks_nothing(hub: Hub, monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    assert asked(monkeypatch, hub.endpoint)[0] == "offline mode is set (HF_HUB_OFFLINE)"
    assert hub.requests == []


def test_offline_lasts_as_long_as_it_is_wanted() -> None:
    def fail_offline() -> None:
        with offline():
            assert (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE) == (True, True)
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail_offline()
    assert (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE) == (False, False)


def test_secrets_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert without_secrets("b'Bearer hf_secret' for http://a:b@c/d, https://e/f@g") == (
        "b'Bearer ***' for http://***@c/d, https://e/f@g"
    )


def test_the_log_of_the_client_is_discreet_for_as_long_as_it_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("huggingface_hub")
    child = logging.getLogger("huggingface_hub.utils._http")
    handler = logging.StreamHandler()
    logger.addHandler(handler)
    try:
        with discreet_client():
            child.warning("requesting %s", "http://me:secret@hub/x")
        assert capsys.readouterr().err.splitlines()[-1] == "requesting http://***@hub/x"
        child.warning("requesting %s", "http://me:secret@hub/x")
        assert "me:secret" in capsys.readouterr().err
    finally:
        logger.removeHandler(handler)
