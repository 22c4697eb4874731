"""Batches as files: one safetensors or .npz file each, and a manifest that says what must be in them."""

from __future__ import annotations

import dataclasses
import io
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fake_data import _files
from fake_data.batches import Batch
from fake_data.errors import DataError
from fake_data.spec import TARGETS, InputSpec

SCHEMA, VERSION = "fake_data.batches", 1
MANIFEST = "manifest.json"


Form = Literal["safetensors", "npz"]


def save_batches(
    folder: str | Path, batches: Iterable[Batch], spec: InputSpec, seed: int, form: Form = "safetensors"
) -> Path:
    """Write NAME.safetensors (or NAME.npz, by `form`) for each batch and manifest.json, which is written last; returns
    the manifest's path.

    The manifest holds the schema's version, the seed, the spec, and of each file and array the SHA-256, dtype and
    shape. The same batches give the same bytes. Raises DataError when two batches share a name, a name can't be a
    file's, or the folder can't be written.
    """
    folder = Path(folder)
    entries: list[dict[str, Any]] = []
    for batch in batches:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", batch.name):
            raise DataError(
                f'the batch name "{batch.name}" can\'t be a file name: use letters, digits, ".", "-" and "_"'
            )
        if any(entry["name"] == batch.name for entry in entries):
            raise DataError(f'two batches are named "{batch.name}"')
        arrays = {name: np.ascontiguousarray(array) for name, array in batch.inputs.items()}
        if batch.targets is not None:
            if TARGETS in arrays:
                raise DataError(f'batch "{batch.name}" has an input named "targets" beside its targets')
            arrays[TARGETS] = np.ascontiguousarray(batch.targets)
        content = _npz(arrays) if form == "npz" else save(arrays)
        file = f"{batch.name}.{form}"
        _files.write(folder / file, content)
        facts = [{"name": name, **_files.array_facts(array)} for name, array in arrays.items()]
        has_targets = batch.targets is not None
        entry = {"name": batch.name, "file": file, "sha256": _files.sha256(content), "targets": has_targets}
        entries.append({**entry, "arrays": facts})
    fields = {name: {"kind": type(f).__name__, **dataclasses.asdict(f)} for name, f in spec.fields.items()}
    described = {"max_length": spec.max_length, "fields": fields}
    manifest = {"schema": SCHEMA, "version": VERSION, "seed": seed, "spec": described, "batches": entries}
    _files.write_json(folder / MANIFEST, manifest)
    return folder / MANIFEST


def load_batches(path: str | Path) -> tuple[Batch, ...]:
    """The batches of a folder (or of its manifest.json), inputs in forward order.

    Raises DataError that names the file, and the array, when anything is missing, cut, or not what was written.
    """
    path = Path(path)
    folder, manifest_path = (path, path / MANIFEST) if path.is_dir() else (path.parent, path)
    manifest = _files.read_manifest(manifest_path, SCHEMA, VERSION)
    try:
        return tuple(_load(folder, entry) for entry in manifest["batches"])
    except (KeyError, TypeError) as error:
        raise DataError(f"{manifest_path} is not as it was written ({error}); write the folder again") from None


def _load(folder: Path, entry: dict[str, Any]) -> Batch:
    file = _files.inside(folder, entry["file"])
    content = _files.read(file)
    form = file.suffix.removeprefix(".")
    try:
        arrays = _from_npz(content) if form == "npz" else load(content)
    except (SafetensorError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{file} is cut or no {form} file ({error}); write the folder again") from None
    inputs = {}
    for facts in entry["arrays"]:
        name = facts["name"]
        if name not in arrays:
            raise DataError(f'{file}: array "{name}" is missing; write the folder again')
        _files.check_array(f'{file}: array "{name}"', arrays[name], facts)
        inputs[name] = arrays[name]
    if _files.sha256(content) != entry["sha256"]:
        raise DataError(f"{file} was changed outside its arrays; write the folder again")
    targets = inputs.pop(TARGETS) if entry["targets"] else None
    return Batch(entry["name"], inputs, targets)


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """As `numpy.savez` writes it, but for the time of writing: the same arrays give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return buffer.getvalue()


def _from_npz(content: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return dict(archive)
