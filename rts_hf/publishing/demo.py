"""A page on which an image is dropped and classified, above the pictures of how the model was trained.

python app.py               # the model that this file was published for
python app.py path/to/run   # another: the folder of a run, or a repository on the Hub

It stands alone, so that a Space on the Hub runs it as it is; see https://huggingface.co/docs/hub/spaces-sdks-gradio.
"""

import html
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

MODEL = "."
REVISION = "main"

PATTERNS = ["*.json", "*.safetensors", "figures/*"]
SHOWN_CLASSES = 5
FIGURES = {
    "history": "Loss and accuracy by epoch",
    "schedules": "Radius and scale of the perturbation",
    "sharpness": "Sharpness of the loss",
    "confusion": "Which classes were taken for which",
}

# A variant of this name is registered with timm by the file beside this one, where the model needs it.
if importlib.util.find_spec("small_image"):
    importlib.import_module("small_image")


def find_folder(model: str, revision: str | None = None) -> Path:
    """Return the folder of a model's files, downloaded if ``model`` is no folder.

    Args:
        model: A folder, or a repository's id on the Hub.
        revision: Of the repository; None for its newest commit.

    Raises:
        FileNotFoundError: If there is neither.
    """
    if (Path(model) / "config.json").is_file():
        return Path(model)
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=PATTERNS))
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"model={model!r} is no folder with a config.json, and no repository that can be read; for a private one, "
            "give the Space a secret HF_TOKEN that may read it."
        ) from error


def classifier(folder: Path) -> Callable[[Image.Image | None], dict[str, float]]:
    """Return a function from an image to the probability of each class, by its name."""
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()

    def classify(image: Image.Image | None) -> dict[str, float]:
        if image is None:
            return {}
        inputs = processor(image.convert("RGB"), return_tensors="pt")
        with torch.inference_mode():
            probabilities = model(**inputs).logits[0].softmax(dim=-1).tolist()
        return {model.config.id2label[index]: value for index, value in enumerate(probabilities)}

    return classify


def training_facts(record: dict[str, Any]) -> dict[str, str]:
    """Return what a run's record tells of its training, as texts by their heading."""
    optimizer, splits = record["optimizer"], record["data"].get("splits") or {}
    facts = {"Data": record["data"]["name"], "Optimizer": optimizer["name"]}
    updates, gradients = record["updates"], record["gradient_evaluations"]
    perturbed = round((gradients - updates) / (optimizer.get("perturb_fraction") or 1))
    facts["Cost"] = f"perturbed {perturbed:,} of {updates:,} updates, {round(gradients):,} gradients"
    if (kept := (record.get("best") or {}).get("step")) is not None:
        facts["Weights"] = f"of update {kept:,}, the best on validation data"
    for split in ("validation", "test"):
        accuracy = (record["metrics"].get(split) or {}).get("accuracy")
        if accuracy is not None:
            facts[f"{split.capitalize()} accuracy"] = f"{accuracy:.4f} on {splits.get(split, 0):,} images"
    return facts


def build(folder: Path) -> gr.Blocks:
    """Return the page of the model in a folder.

    Args:
        folder: The folder of a run, or of a repository it was published in.
    """
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    name = f"{record['model']['architecture']} on {record['data']['name']}"
    rows = "".join(
        f"<tr><th scope='row' style='text-align:left;padding-right:2em'>{html.escape(head)}</th>"
        f"<td>{html.escape(value)}</td></tr>"
        for head, value in training_facts(record).items()
    )
    with gr.Blocks(title=name, analytics_enabled=False) as page:
        gr.HTML(f"<h1>{html.escape(name)}</h1><p>Drop an image to see what the model takes it for.</p>")
        with gr.Row():
            image = gr.Image(type="pil", label="Image", sources=["upload", "clipboard"], height=320)
            answer = gr.Label(label="Class probabilities", num_top_classes=SHOWN_CLASSES)
        image.change(classifier(folder), image, answer, api_name="classify")
        gr.HTML(f"<h2>How it was trained</h2><table>{rows}</table>")
        for file, caption in FIGURES.items():
            if (path := folder / "figures" / f"{file}.png").is_file():
                gr.HTML(f"<h3>{caption}</h3>")
                gr.Image(str(path), alt_text=caption, show_label=False, interactive=False, buttons=["fullscreen"])
    return page


def main() -> None:
    """Serve the page of the model named on the command line, or of the one this file was published for."""
    model, revision = (sys.argv[1], None) if len(sys.argv) > 1 else (MODEL, REVISION)
    try:
        page = build(find_folder(model, revision))
    except OSError as error:
        sys.exit(f"error: {error}")
    page.launch()


if __name__ == "__main__":
    main()
