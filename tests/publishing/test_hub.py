"""A run is published whole or not at all, the same command completes it, and what comes back is the same model."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_endpoints_for_tests import READ_TOKEN, USER, WRITE_TOKEN
from hub_server_for_tests import Hub
from huggingface_hub import HfApi
from publishing_for_tests import REPO, finished_run, hub_of_this_process  # noqa: F401
from run_folder_for_tests import edit_json
from training_for_tests import Images, make_model

from rts_hf.cli import main
from rts_hf.models import classifiers as models
from rts_hf.models.classifiers import save_model
from rts_hf.publishing.hub import check_access, publish
from rts_hf.reports.card import render_card
from rts_hf.runs.command_line import parse_arguments
from rts_hf.runs.run import train

KEY = f"models/{REPO}"
LOADER = """
import json, sys
import torch
import timm
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
plain, variant, pixels = sys.argv[1], sys.argv[2], torch.load(sys.argv[3], weights_only=True)

def load(repo):
    model = AutoModelForImageClassification.from_pretrained(repo).eval()
    backbone = timm.create_model(f"hf-hub:{repo}", pretrained=True).eval()
    image = Image.new("RGB", (16, 16), (200, 30, 30))
    inputs = AutoImageProcessor.from_pretrained(repo)(image, return_tensors="pt")
    with torch.no_grad():
        label = model.config.id2label[model(**inputs).logits.argmax().item()]
        found = [model(pixel_values=pixels).logits.tolist(), backbone(pixels).tolist()]
    assert pipeline("image-classification", model=repo)(image)[0]["label"] == label
    return found

found = [load(plain)]
for attempt in (AutoModelForImageClassification.from_pretrained, lambda repo: timm.create_model(f"hf-hub:{repo}")):
    try:
        attempt(variant)
    except Exception as error:
        assert "__import_rts_hf_first" in str(error), repr(error)
    else:
        raise AssertionError("loaded without rts_hf")
assert "rts_hf" not in sys.modules
import rts_hf
found.append(load(variant))
print("FOUND", json.dumps(found))
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return finished_run(tmp_path / "run")


def published(hub: Hub, path: str, revision: str = "main") -> bytes:
    return hub.store.read(KEY, path, revision)


def test_a_dry_run_needs_no_network_and_tells_sizes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    told = publish(run, REPO, dry_run=True)
    assert told.url is None
    assert told.files["model.safetensors"] == (run / "model.safetensors").stat().st_size
    assert told.files["README.md"] == len(render_card(run, repo_id=REPO).encode())
    assert not list(run.parent.glob(".publish-*"))


def test_everything_is_published_in_one_commit_and_brought_up_to_date(hub_here: Hub, run: Path) -> None:
    first = publish(run, REPO)
    assert first.url is not None
    assert set(hub_here.store.tree(KEY)) - {".gitattributes"} == set(first.files)
    assert published(hub_here, "model.safetensors") == (run / "model.safetensors").read_bytes()
    assert published(hub_here, "README.md").decode() == render_card(run, repo_id=REPO)
    assert publish(run, REPO).url is None  # nothing had changed
    edit_json(run / "run.json", lambda record: record["metrics"]["test"].update(accuracy=0.7312))
    (run / "figures" / "history.png").unlink()
    before = len(hub_here.requests)
    assert publish(run, REPO).url is not None
    assert not any(request.startswith("PUT") for request in hub_here.requests[before:])  # no weights a second time
    assert "**0.7312**" in published(hub_here, "README.md").decode()
    assert "figures/history.png" not in hub_here.store.tree(KEY)


def test_private_branch_tag_and_checkpoints(hub_here: Hub, run: Path) -> None:
    publish(run, REPO, private=True, revision="seed-0", tag="v1", include_checkpoints=True)
    assert hub_here.store.repos[KEY]["private"]
    assert "run.json" not in hub_here.store.tree(KEY)
    assert "checkpoint-4/optimizer.pt" in hub_here.store.tree(KEY, "seed-0")
    assert hub_here.store.resolve(KEY, "v1") == hub_here.store.resolve(KEY, "seed-0")
    publish(run, REPO, revision="seed-0", tag="v1", include_checkpoints=True)  # the same state: the tag fits
    edit_json(run / "run.json", lambda record: record.update(seconds=1.0))
    with pytest.raises(ValueError, match=r"is published, but tag='v1' exists already .* names another state"):
        publish(run, REPO, revision="seed-0", tag="v1", include_checkpoints=True)
    with pytest.raises(ValueError, match=r"^tag='v1' exists already"):
        publish(run, REPO, tag="v1")


def test_another_model_is_not_overwritten_unasked(hub_here: Hub, run: Path) -> None:
    hub_here.store.add(KEY, {"config.json": b"{}", "pytorch_model.bin": b"weights"})
    with pytest.raises(ValueError, match=r"holds another model \(config.json, pytorch_model.bin\).*--overwrite"):
        publish(run, REPO)
    with pytest.raises(ValueError, match=r"repo='probe/digits' holds another model"):
        publish(run, REPO, revision="new")
    hub_here.store.add(KEY, {"run.json": b"no JSON"})
    with pytest.raises(ValueError, match=r"another model \(model architecture None, not 'test_vit'\)"):
        publish(run, REPO)
    publish(run, REPO, overwrite=True)
    assert "pytorch_model.bin" not in hub_here.store.tree(KEY)
    edit_json(run / "run.json", lambda record: record["optimizer"].update(name="sam"))
    with pytest.raises(ValueError, match=r"another model \(optimizer name 'rts_pugd', not 'sam'\)"):
        publish(run, REPO)
    assert published(hub_here, "run.json").decode().count('"rts_pugd"')


def test_what_is_meant_to_be_private_is_not_published_in_public(hub_here: Hub, run: Path) -> None:
    hub_here.store.create(KEY)
    with pytest.raises(ValueError, match=r"private=True, but probe/digits is there already, and public; make it"):
        publish(run, REPO, private=True)
    assert "run.json" not in hub_here.store.tree(KEY)


@pytest.mark.parametrize("name", ["", "my tag", "a..b", "v1.", "/v1", "-v1", "a:b"])
def test_names_that_git_refuses(tmp_path: Path, name: str) -> None:
    for argument in ("tag", "revision"):
        with pytest.raises(ValueError, match=f"^{argument}={name!r} cannot name a commit"):
            publish(tmp_path, REPO, dry_run=True, **{argument: name})  # type: ignore[arg-type]


def test_a_finding_stops_everything(hub_here: Hub, run: Path) -> None:
    edit_json(run / "run.json", lambda record: record.update(warnings=["see /home/somebody/notes"]))
    with pytest.raises(
        ValueError, match=r"README.md:\d+ holds an absolute path \(/home/somebody/notes\); run.json:\d+ "
    ):
        publish(run, REPO)
    assert hub_here.requests == []


@pytest.mark.parametrize("name", ["digits", "a/b/c", "me/..", "me/my digits"])
def test_names_that_are_no_repository(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is no repository's name"):
        publish(tmp_path, name, dry_run=True)


@pytest.mark.parametrize(
    ("token", "repo", "error", "message"),
    [
        ("", REPO, PermissionError, "without being logged in; log in with `hf auth login`"),
        ("hf_unknown_token", REPO, PermissionError, "does not know the token .*hf auth login"),
        (READ_TOKEN, REPO, PermissionError, "the token may not write there"),
        (WRITE_TOKEN, "somebody-else/digits", PermissionError, "may not write there .*a repository of your own"),
    ],
)
def test_who_may_not(
    hub_here: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, token: str, repo: str, error: Any, message: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(error, match=message) as raised:
        publish(run, repo)
    assert "\n" not in str(raised.value)
    assert not token or token not in str(raised.value)


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("POST", "/commit/", 429, r"asks to wait \(429.*the same command goes on"),
        ("POST", "/preupload/", 500, "answered with 500 .*the same command goes on"),
        ("PUT", "/_lfs/", 403, "may not write there"),
        ("POST", "/repos/create", 401, "does not know the token"),
        ("POST", "/commit/", 500, "answered with 500"),
    ],
)
def test_what_the_hub_refuses_is_told_and_the_same_call_completes_it(
    hub_here: Hub, run: Path, method: str, path: str, status: int, message: str
) -> None:
    hub_here.fail(method, path, status=status, count=50)
    with pytest.raises((ConnectionError, PermissionError), match=message):
        publish(run, REPO)
    assert not hub_here.store.repos.get(KEY) or "run.json" not in hub_here.store.tree(KEY)
    hub_here.faults.clear()
    assert publish(run, REPO).url is not None


def test_a_broken_upload_leaves_the_old_model_and_is_completed(hub_here: Hub, run: Path) -> None:
    publish(run, REPO)
    old = published(hub_here, "model.safetensors")
    save_model(make_model(seed=1), run)
    hub_here.fail("PUT", "/_lfs/", drop_after=1000, count=50)
    with pytest.raises(ConnectionError, match="the same command goes on where this one stopped"):
        publish(run, REPO)
    assert published(hub_here, "model.safetensors") == old
    hub_here.stop()
    with pytest.raises(ConnectionError, match="the Hub cannot be reached"):
        publish(run, REPO)
    hub_here.faults.clear()
    hub_here.start()
    assert publish(run, REPO).url is not None
    assert published(hub_here, "model.safetensors") == (run / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("kill", "is_done"),
    [
        (("PUT", "/_lfs/", "--kill_after", "1000"), False),
        (("POST", "/commit/", "--kill_after", "100"), False),
        (("POST", "/commit/"), True),  # the client never hears that it was done
    ],
)
def test_the_server_is_killed_in_mid_upload_and_started_again(
    hub_here: Hub, run: Path, kill: tuple[str, ...], is_done: bool
) -> None:
    hub_here.stop()
    words = ["--root", str(hub_here.root), "--port", str(hub_here.port), "--kill_in", *kill]
    script = Path(__file__).parents[1] / "helpers" / "hub_server_for_tests.py"
    server = subprocess.Popen([sys.executable, str(script), *words], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert server.stdout.readline().strip() == hub_here.endpoint
        with pytest.raises(ConnectionError, match="the same command goes on where this one stopped"):
            publish(run, REPO, tag="v1")
        assert server.wait(timeout=10) == -signal.SIGKILL
    finally:
        server.kill()
        server.communicate()
    hub_here.start()
    assert ("run.json" in hub_here.store.tree(KEY)) is is_done
    assert (publish(run, REPO, tag="v1").url is None) is is_done
    assert published(hub_here, "model.safetensors", "v1") == (run / "model.safetensors").read_bytes()
    assert len(hub_here.store.repos[KEY]["commits"]) == 2  # the one that made it, and this


def test_a_transfer_that_breaks_without_a_reason_is_told(
    hub_here: Hub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError(f"Cannot send {WRITE_TOKEN},\nas the client has been closed.")

    monkeypatch.setattr(HfApi, "create_commit", fail)
    with pytest.raises(ConnectionError, match=r"broke \(Cannot send \*\*\*, as .*closed\.\); the same command goes on"):
        publish(run, REPO)


def test_what_somebody_else_sends_meanwhile_is_not_undone(
    hub_here: Hub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_files = HfApi.list_repo_files

    def meanwhile(*args: Any, **kwargs: Any) -> list[str]:
        found = list_files(*args, **kwargs)
        hub_here.store.add(KEY, {"README.md": b"theirs"})
        return found

    monkeypatch.setattr(HfApi, "list_repo_files", meanwhile)
    with pytest.raises(ConnectionError, match=r"answered with 412 .*the same command goes on"):
        publish(run, REPO)
    assert published(hub_here, "README.md") == b"theirs"


def test_who_may_write_is_known_before_any_work(hub_here: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_access(None) == USER
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    with pytest.raises(PermissionError, match="the token may only read; log in with"):
        check_access(REPO)
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(PermissionError, match="without being logged in"):
        check_access(REPO)


def test_others_load_what_is_published(hub_here: Hub, tmp_path: Path) -> None:
    """Loaded by a process of its own, with an empty cache and no token; one of them published by the command, too."""
    # Of images so small, a ResNet becomes its variant.
    made = {f"{USER}/plain": make_model("test_vit").eval(), f"{USER}/variant": make_model("test_resnet").eval()}
    needed = [models.needs_rts_hf(model.config.architecture) for model in made.values()]
    assert needed == [False, True]
    runs = []
    for (repo, model), needs_rts_hf in zip(made.items(), needed, strict=True):
        runs.append(finished_run(tmp_path / repo, model))
        record = {"architecture": model.config.architecture, "needs_rts_hf": needs_rts_hf}
        edit_json(runs[-1] / "run.json", lambda content, record=record: content["model"].update(record))  # type: ignore[misc]
    sent = subprocess.run(
        [sys.executable, "-m", "rts_hf", "publish", str(runs[0]), "--repo", f"{USER}/plain", "--tag", "v1"],
        capture_output=True, text=True, check=False, env=hub_here.environment(tmp_path / "home"),
    )  # fmt: skip
    assert sent.returncode == 0, sent.stderr
    assert f"published: {hub_here.endpoint}/{USER}/plain/commit/" in sent.stdout
    publish(runs[1], f"{USER}/variant")
    pixels = torch.stack([Images()[index]["pixel_values"] for index in range(4)])
    torch.save(pixels, tmp_path / "pixels.pt")
    loaded = subprocess.run(
        [sys.executable, "-c", LOADER, *made, str(tmp_path / "pixels.pt")],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env=hub_here.environment(tmp_path / "other", token=""),
    )  # fmt: skip
    assert loaded.returncode == 0, loaded.stderr
    found = json.loads(loaded.stdout.rpartition("FOUND ")[2])
    for (repo, model), needs_rts_hf, run, both in zip(made.items(), needed, runs, found, strict=True):
        with torch.no_grad():
            expected = model(pixel_values=pixels).logits
        for logits in both:
            torch.testing.assert_close(torch.tensor(logits), expected, rtol=0, atol=1e-6)
        store = hub_here.store
        assert store.read(f"models/{repo}", "model.safetensors") == (run / "model.safetensors").read_bytes()
        card = store.read(f"models/{repo}", "README.md").decode()
        assert ("the package `rts_hf`, which must be installed" in card) is needs_rts_hf


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: run_dir=.*has no run\.json") as ended:
        main(["publish", str(tmp_path), "--repo", REPO])
    assert "\n" not in str(ended.value)


def train_and_push(folder: Path, *more: str) -> None:
    words = f"""--use_cpu --opt sgd --model test_vit --image_size 16 --max_train_samples 40 --max_eval_samples 20
        --num_train_epochs 1 --measure_sharpness false --draw_figures false
        --push_to_hub --output_dir {folder}""".split()
    train(*parse_arguments([*words, *more]))


def test_the_training_command_publishes_the_same_at_its_end(
    hub_here: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, key = tmp_path / "my-run", f"models/{USER}/my-run"
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(ValueError, match="without being logged in"):
        train_and_push(folder)
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    with pytest.raises(ValueError, match=rf"hub_model_id='{USER}/my digits' is no repository's name"):
        train_and_push(folder, "--hub_model_id", "my digits")
    assert not folder.exists()  # told before any work
    hub_here.fail("POST", "/commit/", status=500, count=50)
    with pytest.raises(ValueError, match=rf"answered with 500 .*The run itself is complete.*--repo {USER}/my-run"):
        train_and_push(folder)
    hub_here.faults.clear()
    train_and_push(folder, "--resume_from_checkpoint", "last")  # which finds it finished
    assert f"Published             {hub_here.endpoint}/{USER}/my-run/commit/" in capsys.readouterr().out
    card = hub_here.store.read(key, "README.md").decode()
    assert card == render_card(folder, repo_id=f"{USER}/my-run")
    assert len(hub_here.store.repos[key]["commits"]) == 2  # the one that made it, and this
    train_and_push(folder, "--resume_from_checkpoint", "last")
    assert "which holds it all already" in capsys.readouterr().out
    more = ["--hub_revision", "seed-42", "--hub_strategy", "all_checkpoints"]
    train_and_push(folder, "--resume_from_checkpoint", "last", *more)
    assert {path.split("-")[0] for path in hub_here.store.tree(key, "seed-42")} >= {"README.md", "checkpoint"}
    assert not any(path.startswith("checkpoint") for path in hub_here.store.tree(key))
