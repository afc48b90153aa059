"""A Space shows one model: its files name it, it is made with it, and another's is left alone."""

import sys
from pathlib import Path

import gradio
import pytest
from hub_endpoints_for_tests import USER
from hub_server_for_tests import Hub
from huggingface_hub import metadata_load
from publishing_for_tests import PUBLISHED, REPO, finished_run, hub_of_this_process  # noqa: F401
from run_folder_for_tests import edit_json

from rts_hf.cli import main
from rts_hf.publishing.hub import publish
from rts_hf.publishing.space import GRADIO_VERSION, model_shown, stage_space

KEY = f"spaces/{REPO}"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return finished_run(tmp_path / "run")


def stage(run: Path, folder: Path) -> list[str]:
    folder.mkdir()
    return stage_space(run, folder, REPO, "0123abcd")


def test_the_files_name_the_model_and_the_versions_it_was_trained_with(run: Path, tmp_path: Path) -> None:
    def edit(record: dict) -> None:
        record["versions"].update(torch="2.14.1+cpu", timm="1.0.31", transformers=None, python="3.12.4")

    edit_json(run / "run.json", edit)
    space = tmp_path / "space"
    assert stage(run, space) == ["README.md", "app.py", "requirements.txt"]
    page = (space / "app.py").read_text(encoding="utf-8")
    assert f'\nMODEL = "{REPO}"\nREVISION = "0123abcd"\n' in page
    assert "rts_hf" not in page
    assert (space / "requirements.txt").read_text() == "torch==2.14.1\ntimm==1.0.31\ntransformers\n"
    card = metadata_load(space / "README.md")
    told = ("sdk", "sdk_version", "python_version", "app_file", "models")
    assert [card[name] for name in told] == ["gradio", GRADIO_VERSION, "3.12", "app.py", [REPO]]
    assert len(card["short_description"]) <= 60  # the Hub's limit
    assert GRADIO_VERSION.split(".")[0] == gradio.__version__.split(".")[0]


def test_a_small_image_variant_brings_the_file_that_registers_it(run: Path, tmp_path: Path) -> None:
    edit_json(run / "run.json", lambda record: record["model"].update(needs_rts_hf=True))
    assert "small_image.py" in stage(run, tmp_path / "space")
    assert "rts_hf" not in sys.modules["rts_hf.models.small_image"].__dict__  # it stands alone


def test_names_cannot_break_the_card(run: Path, tmp_path: Path) -> None:
    nasty = "a: b\n---\nmodels: [other/model]\n'\"{"
    edit_json(run / "run.json", lambda record: record["data"].update(name=nasty))
    stage(run, tmp_path / "space")
    card = metadata_load(tmp_path / "space" / "README.md")
    assert card["models"] == [REPO]
    assert card["title"] == "test_vit on " + " ".join(nasty.split())


@pytest.mark.parametrize("readme", ["", "no card", "---\nsdk: gradio\n---\n", "---\nmodels: [a/b, c/d]\n---\n"])
def test_a_card_that_names_no_model(readme: str) -> None:
    assert model_shown(readme) is None


def test_a_space_is_published_with_its_model_and_follows_it(hub_here: Hub, run: Path) -> None:
    told = publish(run, REPO, space=True, dry_run=True)
    assert not hub_here.store.repos
    first = publish(run, REPO, space=True)
    assert told.space is not None
    assert first.space is not None
    assert (first.files, first.space.files) == (told.files, told.space.files)  # the dry run told the truth
    assert first.space.url == f"{hub_here.endpoint}/spaces/{REPO}"
    assert set(hub_here.store.tree(KEY)) - {".gitattributes"} == set(first.space.files)
    assert first.url is not None
    commit = first.url.rpartition("/")[2]
    assert f'REVISION = "{commit}"' in hub_here.store.read(KEY, "app.py").decode()
    again = publish(run, REPO, space=True)
    assert (again.url, again.space and again.space.url) == (None, None)  # nothing had changed
    edit_json(run / "run.json", lambda record: record.update(seed=3))
    changed = publish(run, REPO, space=True)
    assert changed.url is not None
    assert changed.url.rpartition("/")[2] in hub_here.store.read(KEY, "app.py").decode()


def test_a_space_of_another_is_left_alone(hub_here: Hub, run: Path) -> None:
    hub_here.store.add(KEY, {"app.py": "mine", "README.md": "---\nmodels: [other/model]\n---\n"})
    with pytest.raises(ValueError, match=rf"space='{REPO}' shows other/model; name another.*or replace it with --over"):
        publish(run, REPO, space=True)
    assert f"models/{REPO}" not in hub_here.store.repos  # told before anything was sent
    named = publish(run, REPO, space=f"{USER}/other")
    assert named.space is not None
    assert named.space.repo_id == f"{USER}/other"
    publish(run, REPO, space=True, overwrite=True)
    assert hub_here.store.read(KEY, "app.py") != b"mine"
    hub_here.store.add(f"spaces/{USER}/notes", {"app.py": "mine"})
    with pytest.raises(ValueError, match="is no demo of this model"):
        publish(run, REPO, space=f"{USER}/notes")
    with pytest.raises(ValueError, match="space='notes' is no repository's name"):
        publish(run, REPO, space="notes")


@pytest.mark.parametrize(("words", "name"), [(["--space"], REPO), (["--space", f"{USER}/demo"], f"{USER}/demo")])
def test_the_command_lists_both(run: Path, words: list[str], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["publish", str(run), "--repo", REPO, "--dry_run", *words])
    lines = capsys.readouterr().out.splitlines()
    assert f"would be published in {REPO}. Nothing was sent." in lines[len(PUBLISHED)]
    assert f"3 files, {sum(int(line.split()[0].replace(',', '')) for line in lines[-4:-1]):,} bytes" in lines[-1]
    assert lines[-1].endswith(f"would be published in the Space {name}. Nothing was sent.")


def test_the_space_of_a_private_model_is_private(hub_here: Hub, run: Path) -> None:
    publish(run, REPO, private=True)
    publish(run, REPO, space=True)
    assert hub_here.store.repos[KEY]["private"]
    hub_here.store.add(f"spaces/{USER}/open", {"README.md": "---\nsdk: gradio\n---\n"})
    with pytest.raises(ValueError, match=f"private=True, but {USER}/open is there already, and public"):
        publish(run, f"{USER}/another", private=True, space=f"{USER}/open")
    assert f"models/{USER}/another" not in hub_here.store.repos
