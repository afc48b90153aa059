"""Data sets come from the Hub by the real client, then from its cache; what does not come is said in one line."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import datasets
import huggingface_hub
import pytest
from commands_for_tests import SCRIPT, Ended, Server
from datasets_for_tests import HUB_PRESETS, repository
from hub_endpoints_for_tests import WRITE_TOKEN
from hub_server_for_tests import Hub
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file

from rts_hf import load_data
from rts_hf.data.sources import PRESETS
from rts_hf.reports.run_folder import read_record

HUB_IDS = {name: str(PRESETS[name].hub_id) for name in HUB_PRESETS}
SHORT = [
    *("--model", "test_resnet", "--image_size", "8", "--validation_fraction", "0.5", "--num_train_epochs", "1"),
    *("--opt", "sgd", "--use_cpu", "--save_strategy", "no", "--load_best_model_at_end", "false"),
    *("--measure_sharpness", "false", "--draw_figures", "false"),
]


class Place(NamedTuple):
    """A Hub with data sets, a warm process that knows no other, and the folder where its commands run."""

    hub: Hub
    warm: Server
    folder: Path
    environment: dict[str, str]

    def train(self, dataset: str, output: str, *more: str) -> Ended:
        """Run the training command, forked from the warm process."""
        return self.warm(self.folder, ["--dataset", dataset, "--output_dir", output, *SHORT, *more])

    def train_cold(self, dataset: str, output: str, **environment: str) -> Ended:
        """Run the training command as a user starts it."""
        words = [sys.executable, str(SCRIPT), "--dataset", dataset, "--output_dir", output, *SHORT]
        ended = subprocess.run(
            words,
            cwd=self.folder,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        return Ended([ended.returncode], ended.stdout)

    @contextmanager
    def without_hub(self) -> Iterator[None]:
        self.hub.stop()
        try:
            yield
        finally:
            self.hub.start()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    hub = Hub(folder / "hub")
    for name, hub_id in HUB_IDS.items():
        hub.store.add(f"datasets/{hub_id}", repository(name))
    hub.store.add("datasets/owner/pictures", repository("cifar10", per_class=3))
    hub.store.add("datasets/owner/gated", repository("cifar10"), gated=True)
    environment = hub.environment(folder / "home")
    place = Place(hub, Server(folder, environment), folder, environment)
    yield place
    place.warm.close()
    hub.stop()


@pytest.fixture(scope="module")
def runs(place: Place) -> dict[str, Ended]:
    """One run for each data set, from an empty cache."""
    assert not Path(place.environment["HF_HOME"]).exists()
    runs = {name: place.train(name, f"first-{name}") for name in HUB_PRESETS}
    return {**runs, "owner/pictures": place.train("owner/pictures", "first-pictures")}


def trained(place: Place, output: str, ended: Ended) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the record's data and the weights of a run that went well and kept the token to itself."""
    assert ended.codes == [0], ended.output
    run = place.folder / output
    assert "Traceback" not in ended.output
    texts = [path.read_bytes() for path in run.rglob("*") if path.is_file()]
    assert not [text for text in [ended.output.encode(), *texts] if WRITE_TOKEN.encode() in text]
    return read_record(run)["data"], load_file(run / "model.safetensors")


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(bool((one[name] == other[name]).all()) for name in one)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("cifar10", {"train": 10, "validation": 10, "test": 10}),
        ("cifar100", {"train": 100, "validation": 100, "test": 100}),
        ("tiny_imagenet", {"train": 200, "validation": 200, "test": 200}),
    ],
)
def test_a_preset_trains_from_the_hub_and_again_from_the_cache(
    place: Place, runs: dict[str, Ended], name: str, sizes: dict[str, int]
) -> None:
    data, weights = trained(place, f"first-{name}", runs[name])
    preset, hub_id = PRESETS[name], HUB_IDS[name]
    assert (data["name"], data["source"], data["normalisation"]) == (name, hub_id, name)
    assert data["revision"] == place.hub.store.resolve(f"datasets/{hub_id}", "main")
    assert data["splits"] == sizes
    assert data["split_sources"]["train"]["split"] == preset.train_split
    assert data["split_sources"]["test"] == {"split": preset.test_split, "held_out": False}
    assert len(data["label_names"]) == preset.num_classes
    assert set(preset.known_classes) <= set(data["label_names"])
    fetched = [line for line in place.hub.requests if re.match(rf"GET /datasets/{hub_id}/.*parquet -> 200", line)]
    assert len(fetched) == 2

    requests = len(place.hub.requests)
    with place.without_hub():
        started = time.monotonic()
        if name == "cifar10":  # in a mode that a process is in from its start
            again = place.train_cold(name, f"again-{name}", HF_HUB_OFFLINE="1")
            reason = r"offline mode is set \(HF_HUB_OFFLINE\)"
        else:
            again = place.train(name, f"again-{name}")
            reason = rf"127\.0\.0\.1:{place.hub.port}: .*refused"
        seconds = time.monotonic() - started
    assert re.search(rf"The Hub cannot be reached \({reason}\): dataset='{name}' is read from the cache", again.output)
    assert "Retrying" not in again.output
    assert seconds < 60  # left to itself, the client takes 70 seconds to find its own cache
    assert len(place.hub.requests) == requests
    cached_data, cached_weights = trained(place, f"again-{name}", again)
    assert cached_data == data
    assert same(cached_weights, weights)


def test_any_repository_trains(place: Place, runs: dict[str, Ended]) -> None:
    data, _ = trained(place, "first-pictures", runs["owner/pictures"])
    assert (data["name"], data["source"]) == ("pictures", "owner/pictures")
    assert data["splits"] == {"train": 15, "validation": 15, "test": 10}
    assert data["revision"] == place.hub.store.resolve("datasets/owner/pictures", "main")


def test_the_card_links_the_data_set(place: Place, runs: dict[str, Ended]) -> None:
    for output, hub_id in {"first-cifar10": HUB_IDS["cifar10"], "first-pictures": "owner/pictures"}.items():
        card = ModelCard.load(place.folder / output / "README.md")
        assert card.data.datasets == [hub_id]
        assert card.data.eval_results is not None
        assert {result.dataset_type for result in card.data.eval_results} == {hub_id}
        commit = place.hub.store.resolve(f"datasets/{hub_id}", "main")
        assert f"[{hub_id}](https://huggingface.co/datasets/{hub_id}), commit {commit}\n" in card.text


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("owner/gated", r"'owner/gated' is a gated dataset .*ask for access on its page, .*`hf auth login` .*HF_TOKEN"),
        ("owner/missing", r"'owner/missing' doesn't exist .* or cannot be accessed. Check the spelling; .*HF_TOKEN"),
    ],
)
def test_what_may_not_be_read_is_said_in_one_line(place: Place, dataset: str, message: str) -> None:
    refused = place.train(dataset, "refused")
    assert refused.codes == [1]
    assert re.fullmatch(rf"error: dataset='{dataset}' could not be loaded: .*{message}.*\n", refused.output)
    assert WRITE_TOKEN not in refused.output
    assert not (place.folder / "refused").exists()


def test_without_network_and_cache_the_command_says_so_at_once(place: Place, tmp_path: Path) -> None:
    with place.without_hub():
        started = time.monotonic()
        refused = place.train("cifar10", "refused", "--cache_dir", str(tmp_path))
        seconds = time.monotonic() - started
    assert refused.codes == [1]
    assert re.fullmatch(
        r"error: dataset='cifar10' is no folder here, is not in the cache, and the Hub cannot be reached "
        r"\(127\.0\.0\.1:\d+: .*refused\)\. Connect once.*local folder.*dataset='digits', which needs no network\.\n",
        refused.output,
    )
    assert seconds < 2  # all but the imports
    assert not (place.folder / "refused").exists()


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """The client of this process, online and with an empty cache."""
    for module in (constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.delenv("HF_HUB_ETAG_TIMEOUT", raising=False)
    yield monkeypatch
    huggingface_hub.close_session()


def point(client: pytest.MonkeyPatch, endpoint: str) -> None:
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
    client.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    client.setattr(constants, "ENDPOINT", endpoint)
    client.setattr(datasets.config, "HF_ENDPOINT", endpoint)


@pytest.mark.parametrize("trouble", ["refused", "unknown name", "silence"])
def test_loading_fails_within_two_seconds(client: pytest.MonkeyPatch, tmp_path: Path, trouble: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = "https://hub.invalid" if trouble == "unknown name" else f"http://127.0.0.1:{server.getsockname()[1]}"
        point(client, endpoint)
        if trouble == "refused":
            server.close()
        started = time.monotonic()
        with pytest.raises(ConnectionError, match=r"dataset='cifar10' .*cannot be reached \(.*Connect once"):
            load_data("cifar10", cache_dir=str(tmp_path))
        assert time.monotonic() - started < 2


def test_a_password_in_the_address_is_told_nobody(
    hub: Hub, client: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.store.add(f"datasets/{HUB_IDS['cifar10']}", repository("cifar10"))
    client.setattr(huggingface_hub.utils._http, "time", SimpleNamespace(sleep=lambda seconds: None))
    point(client, hub.endpoint.replace("://", "://me:secret@"))
    hub.fail("HEAD", "/resolve/main/README.md", status=429, count=2)
    with pytest.raises(ValueError, match=r"^dataset='cifar10' .*://\*\*\*@127") as refused:
        load_data("cifar10", cache_dir=str(tmp_path))
    assert "HTTP Error 429 thrown while requesting HEAD http://***@127.0.0.1" in caplog.text
    assert "secret" not in caplog.text + str(refused.value)
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=r"dataset='http://\*\*\*@127.*neither a folder nor a Hub id"):
        load_data(f"{constants.ENDPOINT}/datasets/uoft-cs/cifar10")
