"""The list of what we lean on is that of the code, and an upstream that has moved a name is named."""

import ast
import importlib
import re
from importlib.metadata import version
from pathlib import Path

import pytest
from transformers import Trainer

import rts_hf.training.resumable
from rts_hf.upstream import INTERNALS, TRIED, Internal, check_internals, is_there, take

ROOT = Path(__file__).parents[1]
SOURCES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "rts_hf").rglob("*.py")}
NAMES = {re.split(r"[.:]", internal.name)[-1] for internal in INTERNALS}
PYTHON = {
    *("_action_groups", "_actions", "_group_actions", "_optionals"),  # of argparse
    *("_exit", "_getframe", "_replace"),
}


@pytest.mark.parametrize("internal", INTERNALS, ids=lambda internal: f"{internal.module}.{internal.name}")
def test_it_is_there(internal: Internal) -> None:
    assert is_there(internal)


def test_the_code_leans_on_nothing_else() -> None:
    used, own = set(), set()
    for source in SOURCES.values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr):
                used.add(node.attr)
                if isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
                    own.add(node.attr)
            elif isinstance(node, ast.FunctionDef):
                own.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                imported = [*(alias.name for alias in node.names), getattr(node, "module", None) or ""]
                used |= {part for name in imported for part in name.split(".") if re.match("_[^_]", part)}
    trainers = {name for name in used | own if is_there(Internal("transformers.trainer", f"Trainer.{name}", ""))}
    trainers |= {name for name in used & own if is_there(Internal("transformers.trainer", f"Trainer:{name}", ""))}
    assert (used - own | {name for name in trainers if re.match("_[^_]", name)}) - PYTHON <= NAMES


def test_nothing_is_listed_that_the_code_does_not_name() -> None:
    code = "\n".join(source for path, source in SOURCES.items() if path.name != "upstream.py")
    indirect = {"_set_fsdp_flattened": "_fsdp_flattened"}
    assert [name for name in NAMES if not re.search(rf"\b{indirect.get(name, name)}\b", code)] == []


def test_the_oldest_versions_are_those_asked_for() -> None:
    floors = dict(re.findall(r'^  "(\w+)>=([\d.]+)",$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    assert {package: floors[package] for package in TRIED} == {
        package: oldest for package, (oldest, _) in TRIED.items()
    }


def test_a_name_that_has_moved_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    check_internals("transformers")
    monkeypatch.delattr(Trainer, "_run_epoch")
    oldest, newest = TRIED["transformers"]
    words = rf"transformers {version('transformers')} has no transformers\.trainer\.Trainer\._run_epoch, .*"
    with pytest.raises(
        ImportError, match=words + rf"pip install 'transformers>={oldest},<={newest}', or a newer rts_hf"
    ):
        check_internals("transformers")
    check_internals("accelerate", "timm", "torch")


@pytest.mark.parametrize("internal", [
    Internal("timm.optim._gone", "default_registry", "a module that is gone"),
    Internal("timm.optim", "default_registry_gone", "a name that is gone"),
    Internal("transformers.trainer", "Trainer:_gone", "an attribute that no method speaks of"),
    Internal("transformers.trainer", "Gone:_tr_loss", "one of a class that is gone"),
])  # fmt: skip
def test_what_is_gone(internal: Internal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rts_hf.upstream.INTERNALS", (internal,))
    assert not is_there(internal)
    with pytest.raises(ImportError, match=rf"\({internal.reason}\); pip install"):
        take(internal.module.split(".")[0], internal.name)


def test_importing_the_trainer_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Trainer, "_get_grad_norm")
    with pytest.raises(ImportError, match=r"has no transformers\.trainer\.Trainer\._get_grad_norm"):
        importlib.reload(rts_hf.training.resumable)
