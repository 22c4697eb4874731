"""`align fake-data` as a person uses it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from alignment.cli import run
from fake_data import load_batches
from fake_data.amazon import load_reviews, synthetic_reviews


def align(*arguments: object) -> int:
    return run(["fake-data", *map(str, arguments)])


def test_batches_of_every_twin(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from alignment.twins import TWINS

    for name in TWINS:
        assert align("batches", "--out", tmp_path / name, "--twin", name, "--seed", 3, "--batch-size", 2) == 0
        assert "padded-row" in capsys.readouterr().out
        assert [batch.name for batch in load_batches(tmp_path / name)][:2] == ["random", "full-length"]


def test_nothing_is_overwritten_without_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "r.json.gz"
    commands = (
        ("synthetic", "--count", 400, "--out", file),
        ("batches", "--out", tmp_path / "b"),
        ("amazon", file, "--out", tmp_path / "a", "--length", 16),
    )
    for command in commands:
        assert align(*command) == 0
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        assert align(*command) == 2
        assert "--force" in capsys.readouterr().err
        assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        assert align(*command, "--force") == 0


@pytest.mark.parametrize("split", ["balanced", "random"])
def test_reviews_become_arrays_and_bad_lines_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str):
    rows = [json.dumps(review) for review in synthetic_reviews(600, 0)]
    rows[3:3] = ["nonsense"] * 7
    file = tmp_path / "reviews.json.gz"
    file.write_bytes(gzip.compress("\n".join(rows).encode()))
    out = tmp_path / "out"
    assert align("amazon", file, "--out", out, "--split", split, "--length", 32, "--seed", 4) == 0
    shown = capsys.readouterr().out
    assert "600 reviews read" in shown
    assert "note: only" in shown
    assert "7 lines held no review:\n  line 4: not a dict" in shown
    assert shown.count("not a dict") == 5
    train, test = load_reviews(out, "train"), load_reviews(out, "test")
    assert train.ids.shape == (8 * len(test.labels), 32)
    assert train.bad == 7
    if split == "balanced":
        assert len(set(np.bincount(train.labels).tolist())) == 1
    assert align("amazon", file, "--out", tmp_path / "strict", "--strict") == 2
    assert "line 4: not a dict" in capsys.readouterr().err
    assert not (tmp_path / "strict").exists()


def test_a_cut_file_is_kept_only_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert align("synthetic", "--count", 2000, "--out", tmp_path / "r.json.gz") == 0
    cut = tmp_path / "cut.json.gz"
    cut.write_bytes((tmp_path / "r.json.gz").read_bytes()[:-5000])
    assert align("amazon", cut, "--out", tmp_path / "a") == 2
    assert "cut.json.gz: its gzip data ends too early after" in capsys.readouterr().err
    assert align("amazon", cut, "--out", tmp_path / "a", "--allow-truncated") == 0
    assert "these were kept" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("amazon", "nowhere.json.gz", "--out", "a"), "nowhere.json.gz does not exist"),
        (("batches", "--out", "b", "--twin", "nobody"), "nobody"),
        (("batches", "--out", "b", "--length", 10_000), "10000"),
        (("batches", "--out", "b", "--set", "nothing=1"), "nothing"),
        (("batches", "--out", "b", "--set", "num_classes=0"), "classes"),
        (("synthetic", "--count", 0, "--out", "r.json"), "count"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    says: str,
):
    monkeypatch.chdir(tmp_path)
    assert align(*arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_files_of_the_historical_names_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert align("synthetic", "--count", 400, "--out", tmp_path / "r.json.gz") == 0
    folder = tmp_path / "historical"
    folder.mkdir()
    (folder / "data.npy").write_bytes(b"mine")
    assert align("amazon", tmp_path / "r.json.gz", "--out", folder) == 2
    assert "not empty" in capsys.readouterr().err
    assert (folder / "data.npy").read_bytes() == b"mine"
    assert align("amazon", tmp_path / "r.json.gz", "--out", tmp_path, "--force") == 2
    assert "might be overwritten" in capsys.readouterr().err


def test_a_link_keeps_pointing_where_it_points(tmp_path: Path):
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    assert align("synthetic", "--count", 3, "--out", link) == 2
    assert align("synthetic", "--count", 3, "--out", link, "--force") == 0
    assert link.is_symlink()
    assert len(target.read_text().splitlines()) == 3
