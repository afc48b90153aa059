"""The commands, by whatever name they are called."""

import subprocess
import sys
from pathlib import Path

import pytest

from rts_hf.cli import COMMANDS, main


def test_the_overview_fits_one_screen_and_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= 24
    assert all(f"  {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_the_command_as_it_was_called(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["bin/rts-hf"])
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    assert f"usage: rts-hf {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tarin"], "there is no command 'tarin'; choose one of train, compare"),
        (["train", "--lerning_rate", "1"], "did you mean --learning_rate"),
        (["publish", "nowhere", "--repo", "a/b", "--dry_run"], "nowhere"),
        (["figures", "nowhere", "--output_dir", "out"], "nowhere"),
        (["demo", "nowhere"], "RUN='nowhere' is no folder"),
        (["compare", "--opts", "sgd", "--output_dir", "out", "--print_commands", "--tune", "2"], "--print_commands"),
    ],
)
def test_what_is_wrong_ends_with_a_message(words: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=r"^error: ") as left:
        main(words)
    assert message in str(left.value)


def test_the_module_is_a_command(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "rts_hf", "recipes"]
    done = subprocess.run(words, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cifar10_radius" in done.stdout
