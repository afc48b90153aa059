"""Small text files, whole or not at all."""

from pathlib import Path
from typing import Any

import pytest

from rts_hf.files import read_json_object, replace_part, write_text


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, "state.json is missing"),
        (b"{", ValueError, "state.json is not valid JSON: .*may have been cut off"),
        (b"\xff{}", ValueError, "state.json is not valid JSON"),
        (b"[1]", ValueError, "state.json holds a list, not a JSON object"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, content: bytes | None, error: type[Exception], message: str) -> None:
    path = tmp_path / "state.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=message):
        read_json_object(path)


def test_a_folder_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be read: .*Is a directory"):
        read_json_object(tmp_path)


def test_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "card.md"
    write_text(path, "ä\n")
    assert path.read_bytes() == "ä\n".encode()

    def cut(self: Path, *args: Any, **kwargs: Any) -> None:
        self.write_bytes(b"ha")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", cut)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "half\n")
    assert path.read_text() == "ä\n"


def test_a_part_of_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("a <b> old <e> c", encoding="utf-8")
    replace_part(path, "<b>", "<e>", " new ")
    assert path.read_text(encoding="utf-8") == "a <b> new <e> c"
    for text in ("a", "<e> <b>", "<b> <b> <e>"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="there must be one part between <b> and <e>"):
            replace_part(path, "<b>", "<e>", "new")
        assert path.read_text(encoding="utf-8") == text
