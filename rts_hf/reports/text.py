"""Numbers and texts as a model card shows them: readable, and never markup."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from rts_hf.optim.switches import StagedSwitch
from rts_hf.reports.run_folder import is_finite
from rts_hf.training.window import share_taken

FIXED_BELOW = 100.0  # losses from here on are written with four digits, not with four decimals
TEXT_LIMIT = 200  # characters of one name or note


def number(value: object) -> str:
    """Format a number for reading; anything that is not one becomes a dash."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "not finite"
    return "–"


def share(value: object) -> str:
    """Format an accuracy or a loss with the same number of decimals everywhere, so that a column can be compared.

    Only a loss that blew up is rounded to four digits, most of its decimals being noise.
    """
    if not is_finite(value):
        return number(value)
    return f"{value:.4f}" if abs(value) < FIXED_BELOW else f"{value:.4g}"


def measured_share(value: object) -> str:
    """Format what was measured: JSON holds no NaN, so a record has null for it."""
    return share(math.nan if value is None else value)


def counted(value: object, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, which is in the singular after 1 only."""
    return f"{number(value)} {noun if value == 1 else plural or noun + 's'}"


def spent(record: Mapping[str, Any]) -> str:
    """Return how many updates of a run were perturbed, and what all took, as its card and its closing table say it.

    >>> spent({"updates": 630, "gradient_evaluations": 945, "optimizer": {}})
    'perturbed 315 of 630 updates, 945 gradients'

    Args:
        record: What ``run.json`` holds.
    """
    updates, gradients = record["updates"], record["gradient_evaluations"]
    share_of_images = record["optimizer"].get("perturb_fraction") or 1
    if share_of_images < 1:
        batch = ((record.get("arguments") or {}).get("training") or {}).get("per_device_train_batch_size")
        share_of_images = share_taken(share_of_images, batch) if isinstance(batch, int) else share_of_images
    perturbed = round((gradients - updates) / share_of_images)
    return f"perturbed {number(perturbed)} of {counted(updates, 'update')}, {counted(round(gradients), 'gradient')}"


def why_not_perturbed(switch: Mapping[str, Any]) -> str:
    """Return what became of the generalization gap in a staged run none of whose updates was perturbed.

    Args:
        switch: What ``run.json`` holds of it.
    """
    state = switch["state"]
    if state["grown"]:
        return "the generalization gap grew after the last update"
    first = StagedSwitch(**switch["settings"]).first_comparison
    if state["epochs_seen"] < first:
        heard = counted(state["epochs_seen"], "evaluation")
        return f"the generalization gap was not compared, which needs {first} evaluations and had {heard}"
    return "the generalization gap did not grow"


def escaped(value: Any) -> Any:
    """Return a JSON value with every text in it, keys too, made safe for Markdown and HTML."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, Mapping):
        return {text(key): escaped(item) for key, item in value.items()}
    return [escaped(item) for item in value] if isinstance(value, list) else value


# Characters that begin markup somewhere: Markdown, HTML, tables, mentions, math, bare links. An underscore inside a
# word, as in a model's name, does not, and an equals sign only where a line begins with it.
_MARKUP = re.compile(r"[&<>`*\[\]{}|~$@#^\\]|^=|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.", re.IGNORECASE)


def text(value: object) -> str:
    """Return text on one line in which nothing is markup: what could begin some is written as an HTML entity."""
    line = clean(value)
    line = line if len(line) <= TEXT_LIMIT else line[: TEXT_LIMIT - 1] + "…"
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", line)


def clean(value: object, keep: str = "") -> str:
    """Return text without control characters, half pairs and writing-direction marks, its white space collapsed."""
    allowed = keep + "\u200c\u200d"  # the joiners that Persian or Hindi words are spelled with
    kept = "".join(c if c in allowed or unicodedata.category(c)[0] != "C" else " " for c in str(value))
    return kept if keep else " ".join(kept.split())


def code_block(code: str, language: str) -> str:
    """Return a fenced code block that the code cannot close."""
    code = clean(code, keep="\n\t")
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code}\n{fence}"
