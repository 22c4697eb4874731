"""Files that people write: whatever is wrong with one is a ValueError, on every way in a clear line and status 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignment.cli import main
from checkpoints.tables import read_table, read_toml

DEEP = "[" * 20_000
FAULTY = [
    pytest.param("a = " + DEEP, "nested too deeply", id="deep"),
    pytest.param("a = 1\na = 2", "overwrite a value", id="twice"),
    pytest.param("a = ", "Invalid value", id="cut"),
    pytest.param("a = " + "9" * 5_000, "4300 digits", id="endless number"),
]


@pytest.mark.parametrize(("text", "says"), FAULTY)
def test_a_faulty_toml_file_is_a_value_error(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=says):
        read_toml(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param('{"a": ' + DEEP, "nested too deeply", id="deep"),
        pytest.param('{"a": 1, "a": 2}', "a key stands twice", id="twice"),
        pytest.param('{"a": }', "Expecting value", id="cut"),
        pytest.param('{"a": ' + "9" * 5_000 + "}", "4300 digits", id="endless number"),
    ],
)
def test_a_faulty_json_file_is_a_value_error(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=says):
        read_table(path, "this")


def test_bytes_that_are_no_text_are_a_value_error(tmp_path: Path) -> None:
    for name in ("a.toml", "a.json"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00")
        with pytest.raises(UnicodeDecodeError):
            read_table(tmp_path / name, "this")


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "--config", "FILE"],
        ["check", "--waivers", "FILE"],
        ["check", "--baseline", "FILE"],
        ["check", "--mapping", "FILE"],
        ["sweep", "--cases", "FILE"],
    ],
    ids=lambda arguments: arguments[1].lstrip("-"),
)
@pytest.mark.parametrize(("text", "says"), FAULTY)
def test_the_command_line_names_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str, says: str
) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(SystemExit) as ended:
        main([str(path) if one == "FILE" else one for one in arguments])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "own.toml" in told
    assert says in told
    assert "internal error" not in told
