"""Encoded reviews as files, under the names that the historical preprocessing gave them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from fake_data import _files
from fake_data.amazon.dataset import EncodedReviews, Vocabulary
from fake_data.amazon.reader import BadLine
from fake_data.amazon.split import Split
from fake_data.errors import DataError

SCHEMA, VERSION = "fake_data.reviews", 1
MANIFEST = "manifest.json"


def save_reviews(
    folder: str | Path, reviews: EncodedReviews, *, split: Split | None = None, about: dict[str, Any] | None = None
) -> Path:
    """Write data.npy (int32 [n, length]), label.npy (int64 [n]), num_tokens.npy (int64 []), vocabulary.txt (line i + 1
    is the word of id i) and, last, manifest.json with the SHA-256 of each; returns the manifest's path.

    `split` says which rows are train, validation and test, when the reviews were encoded in the order of its `rows`;
    `about` is kept in the manifest (a seed, a source). Raises DataError when the folder can't be written, or the split
    is of another number of rows.
    """
    folder = Path(folder)
    parts = {"all": (0, len(reviews.labels))} if split is None else split.parts()
    if max(end for _, end in parts.values()) != len(reviews.labels):
        raise DataError(f"the split is of {len(split.rows()) if split else 0} rows, not of {len(reviews.labels)}")
    arrays = {
        "data.npy": reviews.ids,
        "label.npy": reviews.labels,
        "num_tokens.npy": np.array(reviews.num_tokens, dtype=np.int64),
    }
    files = {}
    for name, array in arrays.items():
        with _files.replaced(folder / name) as file:
            np.save(file, array, allow_pickle=False)
        files[name] = _files.array_facts(array)
    words = "".join(f"{word}\n" for word in reviews.vocabulary.words).encode()
    _files.write(folder / "vocabulary.txt", words)
    manifest = {
        "schema": SCHEMA,
        "version": VERSION,
        "about": about or {},
        "parts": {name: list(span) for name, span in parts.items()},
        "files": {**files, "vocabulary.txt": {"sha256": _files.sha256(words)}},
        "bad": reviews.bad,
        "bad_lines": [list(line) for line in reviews.bad_lines],
        "notes": [*reviews.notes, *(split.notes if split else ())],
    }
    _files.write_json(folder / MANIFEST, manifest)
    return folder / MANIFEST


def load_reviews(folder: str | Path, part: str | None = None) -> EncodedReviews:
    """What `save_reviews` wrote: all rows, or those of "train", "validation" or "test".

    Raises DataError that names the file when anything is missing, cut, or not what was written.
    """
    folder = Path(folder)
    manifest = _files.read_manifest(folder / MANIFEST, SCHEMA, VERSION)
    try:
        arrays = {name: _array(folder / name, manifest["files"][name]) for name in ("data.npy", "label.npy")}
        tokens = _array(folder / "num_tokens.npy", manifest["files"]["num_tokens.npy"])
        content = _files.read(folder / "vocabulary.txt")
        if _files.sha256(content) != manifest["files"]["vocabulary.txt"]["sha256"]:
            raise DataError(f"{folder / 'vocabulary.txt'} is cut or changed; write the folder again")
        words = tuple(content.decode().split("\n")[:-1])
        if len(words) != int(tokens):
            raise DataError(f"{folder}: vocabulary.txt has {len(words)} words, but num_tokens.npy says {int(tokens)}")
        parts = manifest["parts"]
        if part is not None and part not in parts:
            raise DataError(f'{folder} has no part "{part}", only {", ".join(parts)}')
        rows = slice(None) if part is None else slice(*parts[part])
        bad_lines = tuple(BadLine(*line) for line in manifest["bad_lines"])
        return EncodedReviews(
            arrays["data.npy"][rows],
            arrays["label.npy"][rows],
            Vocabulary(words),
            manifest["bad"],
            bad_lines,
            tuple(manifest["notes"]),
        )
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder / MANIFEST} is not as it was written ({error}); write the folder again") from None


def _array(path: Path, facts: dict[str, Any]) -> np.ndarray:
    content = _files.read(path)
    try:
        array: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, MemoryError) as error:
        raise DataError(f"{path} is cut or no .npy file ({error}); write the folder again") from None
    _files.check_array(str(path), array, facts)
    return array
