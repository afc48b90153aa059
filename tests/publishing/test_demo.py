"""The page that a Space runs, as somebody sees it in a browser."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hub_server_for_tests import Hub
from huggingface_hub import snapshot_download
from PIL import Image
from playwright.sync_api import sync_playwright
from publishing_for_tests import REPO, finished_run, hub_of_this_process  # noqa: F401
from run_folder_for_tests import edit_json
from runs_for_tests import SMALL, settings
from sklearn.datasets import load_digits
from transformers import pipeline

from rts_hf import ModelArguments, train
from rts_hf.publishing.demo import FIGURES, build, find_folder, training_facts
from rts_hf.publishing.hub import publish
from rts_hf.reports.card import FIGURES as FIGURES_OF_CARDS
from rts_hf.reports.run_folder import read_record
from rts_hf.reports.text import spent

# Runs a Space's page as the Hub does, where this package is not installed.
ALONE = "import runpy, sys; sys.modules['rts_hf'] = None; runpy.run_path('app.py', run_name='__main__')"
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
SECONDS = 120  # for the page's start, on a machine that is busy with other tests


@pytest.fixture
def browser() -> str:
    """The path of a Chromium; without one there is nothing to test, but in continuous integration there must be one."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no Chromium on the PATH; Debian's package is chromium")
    return str(found)


@contextmanager
def served(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """Run the page in a folder and give its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = folder / "output.txt"
    with told.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", ALONE], cwd=folder, stdout=output, stderr=subprocess.STDOUT,
            env={**environment, "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False", "PYTHONPATH": ""},
        )  # fmt: skip
    try:
        address, end = f"http://127.0.0.1:{port}", time.monotonic() + SECONDS
        while True:
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, told.read_text()
                assert time.monotonic() < end, told.read_text()
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait()


def see(browser: str, address: str, picture: Path, screenshot: Path) -> dict[str, Any]:
    """Drop an image on the page, and return what it then shows."""
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser, args=FLAGS)
        page = chromium.new_page(viewport={"width": 1200, "height": 900})
        page.goto(address)
        page.set_input_files("input[type=file]", picture, timeout=SECONDS * 1000)
        page.get_by_text(re.compile(r"^\d+%$")).first.wait_for(timeout=SECONDS * 1000)
        page.wait_for_function(f"document.querySelectorAll('img[alt]:not([alt=\"\"])').length >= {len(FIGURES)}")
        page.wait_for_load_state("networkidle")
        page.screenshot(path=screenshot, full_page=True)
        pictures = page.evaluate("[...document.images].map(image => [image.alt, image.naturalWidth])")
        seen = {"text": page.inner_text("body"), "pictures": dict(pictures), "title": page.title()}
        chromium.close()
    return seen


def test_an_image_dropped_in_a_browser_is_classified_above_the_pictures_of_the_training(
    hub_here: Hub, browser: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    model = ModelArguments(model="resnet_micro_small")
    train(model, SMALL, settings(run, opt="rts_pugd", switch="fixed", switch_at=0.5, seed=1))
    publish(run, REPO, space=True)
    space = Path(snapshot_download(REPO, repo_type="space", local_dir=tmp_path / "space"))
    image = tmp_path / "digit.png"
    Image.fromarray((load_digits().images[7] * 15).astype("uint8")).resize((160, 160)).save(image)
    with served(space, hub_here.environment(tmp_path / "home", token="")) as address:
        seen = see(browser, address, image, tmp_path / "screenshot.png")
    expected = pipeline("image-classification", model=str(run), top_k=5)(str(image))
    lines = [line.strip() for line in seen["text"].splitlines() if line.strip()]
    start = lines.index("Class probabilities") + 1
    shown = lines[start : start + 11]
    assert shown[0] == expected[0]["label"]
    assert shown[1::2] == [each["label"] for each in expected]
    assert shown[2::2] == [f"{each['score']:.0%}" for each in expected]
    assert seen["title"] == "resnet_micro_small on digits"
    assert all(seen["pictures"][caption] > 100 for caption in FIGURES.values())  # they are there, and loaded
    record = read_record(run)
    perturbed = record["updates"] - record["optimizer"]["switch"]["step"]
    assert 0 < perturbed < record["updates"]
    assert f"Cost\tperturbed {perturbed} of {record['updates']} updates, " in seen["text"]
    assert f"Weights\tof update {record['best']['step']}, the best on validation data" in seen["text"]
    assert f"Test accuracy\t{record['metrics']['test']['accuracy']:.4f} on 40 images" in seen["text"]


def test_the_pictures_are_those_of_the_card() -> None:
    assert set(FIGURES) == set(FIGURES_OF_CARDS)


def test_what_training_took_is_told_as_the_card_tells_it() -> None:
    told = {"optimizer": {"name": "rts_pugd", "perturb_fraction": 0.5}, "data": {"name": "digits"}, "metrics": {}}
    record = {**told, "updates": 8, "gradient_evaluations": 10}
    assert training_facts(record)["Cost"] == "perturbed 4 of 8 updates, 10 gradients" == spent(record)


def test_names_are_no_markup(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    edit_json(run / "run.json", lambda record: record["data"].update(name="<img src=x onerror=alert(1)>"))
    page = build(run)
    texts = [part["props"].get("value") for part in page.config["components"] if part["type"] == "html"]
    assert sum("&lt;img src=x" in str(text) for text in texts) == 2
    assert not any("<img" in str(text) for text in texts)


def test_a_model_that_is_nowhere(hub_here: Hub) -> None:
    with pytest.raises(FileNotFoundError, match=rf"model='{REPO}' is no folder .*, and no repository that can be read"):
        find_folder(REPO)
