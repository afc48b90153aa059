"""The card of a run: nothing a user wrote becomes markup, and it still reads as it was written."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from cards_for_tests import change, metadata, results_by_split, set_entry
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from run_folder_for_tests import edit_json, write_run_folder

from rts_hf.reports.card import render_card, write_card

NASTY = [
    "<script>alert(1)</script>",
    "</details><img src=x onerror=alert(1)>",
    "a | b | c",
    "[click](http://evil.example)",
    "![x](http://evil.example/x.png)",
    "<http://evil.example> www.evil.example",
    "`code` **bold** _it_ ~~gone~~ __init__",
    "``` \n```\n# heading",
    "\n---\nlicense: evil\n---\n",
    "name: value # comment",
    "'\"}: [{",
    "{{ 7 * 7 }} {% raw %}",
    "$$x$$ \\(y\\) @someone #1",
    "\\| \\`",
    "null",
    "1e3",
    "\x00\x1b[31m\u202egpj\u2028x\ud800",
    "&lt;b&gt; &#96;",
    "- [ ] item\r\n1. one",
    "",
    "é猫 نص",
]
TEXT_FIELDS = [
    *("model.architecture", "model.checkpoint", "data.name", "data.source", "optimizer.name", "optimizer.base"),
    *("best.metric", "hardware.device", "hardware.accelerator", "versions.torch", "status", "command"),
    *("arguments.training.lr_scheduler_type", "optimizer.switch.kind", "arguments.data.dataset"),
    *("data.augmentation", "data.normalisation", "data.split_sources.train.split", "data.split_sources.test.split"),
]


def nasty_text(rng: random.Random) -> str:
    alphabet = "".join(NASTY) + "<>&|[]()`*_~$\\{}#!-=+:/'\"\n\r\t\u202e\x07"
    return rng.choice([rng.choice(NASTY), "".join(rng.choices(alphabet, k=rng.randint(1, 40)))])


def skeleton(card: str) -> list[tuple[str, str]]:
    """Return the card's structure: every piece of markup in it, without the text between."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(ModelCard(card).text)
    found = []
    for token in tokens:
        found.append((token.type, token.tag))
        for child in token.children or []:
            if child.type not in ("text", "softbreak", "text_special", "entity"):
                found.append((child.type, f"{child.tag}{child.attrs}{child.content if child.markup == '' else ''}"))
        if token.type == "html_block":
            found.append(("html", token.content))
    return found


@pytest.mark.parametrize("seed", range(25))
def test_nothing_a_user_wrote_becomes_markup_or_metadata(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    folder = write_run_folder(tmp_path / "run", epochs=6, switch_step=60)
    plain: dict[str, Any] = dict.fromkeys(TEXT_FIELDS, "word")
    plain |= {"data.label_names": ["word"] * 10, "warnings": ["word"] * 2, "data.skipped": {"word": 1}}
    nasty: dict[str, Any] = {keys: nasty_text(rng) for keys in TEXT_FIELDS}
    nasty |= {"data.label_names": [nasty_text(rng) for _ in range(10)], "warnings": [nasty_text(rng), nasty_text(rng)]}
    nasty["data.skipped"] = {nasty_text(rng): 1}
    nasty["model.checkpoint"] = nasty["model.checkpoint"] or "x"  # an empty one means there was none
    nasty["hardware.accelerator"] = nasty["hardware.accelerator"] or "x"
    cards = []
    for texts in (plain, nasty):

        def edit(record: dict[str, Any], texts: dict[str, Any] = texts) -> None:
            for keys, value in texts.items():
                set_entry(record, keys, value)

        edit_json(folder / "run.json", edit)
        cards.append(render_card(folder))
    write_card(folder)
    assert skeleton(cards[1]) == skeleton(cards[0])
    heads = [metadata(card) for card in cards]
    assert list(heads[1]) == list(heads[0])
    assert "license" not in heads[1]
    assert list(results_by_split(cards[1]).values()) == list(results_by_split(cards[0]).values())


@pytest.mark.parametrize(
    "text", ["a < b & c", "snow_leopard", "50 % off", "*star*", "x|y", "_lead", "e.g. www.x.org", "=="]
)
def test_escaped_names_still_read_as_written(tmp_path: Path, text: str) -> None:
    folder = write_run_folder(tmp_path / "run")
    change(folder, "data.label_names", [text, "other"])
    html = MarkdownIt("commonmark").enable("table").render(ModelCard(render_card(folder)).text)
    shown = text.replace("&", "&amp;").replace("<", "&lt;")
    assert f"Classes: {shown} · other" in html


def test_ordinary_names_stay_readable_in_the_source(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    change(folder, "warnings", ["The switch FixedSwitch(at=0.8) never fired."])
    assert "- Warning of the run: The switch FixedSwitch(at=0.8) never fired.\n" in render_card(folder)
    change(folder, "data.label_names", ["snow_leopard", "T-shirt/top", "St. Bernard's dog (big)"])
    assert "snow_leopard · T-shirt/top · St. Bernard's dog (big)" in render_card(folder)
