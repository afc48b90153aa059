"""The files of a Gradio Space that shows a published model: its card, its requirements, and the page itself."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rts_hf.files import write_text
from rts_hf.models import small_image
from rts_hf.reports.run_folder import read_record
from rts_hf.reports.text import clean

GRADIO_VERSION = "6.31.0"  # that the page was last looked at with
_PAGE = Path(__file__).with_name("demo.py")
_DESCRIPTION = "Drop an image, see its class and how training went"  # the Hub takes at most 60 characters


def stage_space(run_dir: str | Path, folder: str | Path, repo_id: str, revision: str) -> list[str]:
    """Lay out in a folder the Space of a published model, and return the paths in it, sorted.

    The page is ``rts_hf/demo.py`` with the model's name in it. Its requirements are the versions that the model was
    trained with, and of this package nothing but the file that a small-image variant is registered by, so that a Space
    needs no release of it.

    Args:
        run_dir: The run as it was published; its ``run.json`` is read.
        folder: An empty folder.
        repo_id: The model's repository, ``owner/name``.
        revision: Its commit, so that the Space is built anew with every new one.

    Raises:
        FileNotFoundError: If ``run.json`` is missing.
        ValueError: If it is damaged.
    """
    record, target = read_record(run_dir), Path(folder)
    write_text(target / "README.md", _card(record, repo_id))
    write_text(target / "requirements.txt", _requirements(record))
    write_text(target / "app.py", _page(repo_id, revision))
    if record["model"]["needs_rts_hf"]:
        write_text(target / "small_image.py", inspect.getsource(small_image))
    return sorted(path.name for path in target.iterdir())


def model_shown(readme: str) -> str | None:
    """Return the repository whose model a Space shows, as its card tells; None where it names none, or several.

    >>> model_shown("---\\nsdk: gradio\\nmodels:\\n- user/digits\\n---\\n")
    'user/digits'
    """
    from huggingface_hub import SpaceCard

    models = SpaceCard(readme, ignore_metadata_errors=True).data.get("models") or []
    return models[0] if isinstance(models, list) and len(models) == 1 else None


def _card(record: Mapping[str, Any], repo_id: str) -> str:
    from huggingface_hub import SpaceCardData

    python = str(record["versions"].get("python") or "3.11")
    data = SpaceCardData(
        title=clean(f"{record['model']['architecture']} on {record['data']['name']}") or "Image classifier",
        emoji="🔍",
        colorFrom="blue",
        colorTo="yellow",
        sdk="gradio",
        sdk_version=GRADIO_VERSION,
        python_version=".".join(python.split(".")[:2]),
        app_file="app.py",
        license=clean(record.get("license") or "") or None,
        models=[repo_id],
        short_description=_DESCRIPTION,
    )
    link = f"[{repo_id}](https://huggingface.co/{repo_id})"
    return f"---\n{data}\n---\n\nThe demo of {link}, whose card tells what was measured.\n"


def _requirements(record: Mapping[str, Any]) -> str:
    versions = {name: str(record["versions"].get(name) or "") for name in ("torch", "timm", "transformers")}
    # A build's own mark, as in 2.14.1+cpu, is no release that can be asked for.
    return "".join(
        f"{name}=={version.split('+')[0]}\n" if re.match(r"\d", version) else f"{name}\n"
        for name, version in versions.items()
    )


def _page(repo_id: str, revision: str) -> str:
    source = _PAGE.read_text(encoding="utf-8")
    return source.replace('MODEL = "."\n', f'MODEL = "{repo_id}"\n').replace(
        'REVISION = "main"\n', f'REVISION = "{revision}"\n'
    )
