"""The answers of a cache as one file, which another machine verifies: a zip archive with a list of what is in it.

The one idea: nothing is unpacked. Each member is read by a name that is one of ours, held against its checksum and read
as the entry that it should be, and only then written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import uuid
import zipfile
from pathlib import Path
from typing import Any

from tesseract_flow.client.caches.components import Component
from tesseract_flow.client.caches.directory import DirectoryCache
from tesseract_flow.client.caches.entries import ARRAYS, NAME, Entry, read_entry
from tesseract_flow.client.caches.files import COMPONENT, Inventory
from tesseract_flow.errors import StorageError

FORMAT = "answers of Tesseracts, 1"
MANIFEST = "manifest.json"
MAX_BYTES = 2**34


def export(cache: DirectoryCache, target: Path) -> list[dict[str, Any]]:
    """Write all answers of a cache into an archive.

    Returns:
        Where each answer comes from, as it is in the archive's list.

    Raises:
        StorageError: an entry is damaged, or `target` is there already; nothing is left of it then.
    """
    if target.exists():
        raise StorageError(f"{target} is there already.")
    found = Inventory.of(cache.folder, time.time())
    files = {file.name: file.read_bytes() for file in found.components}
    for file, _, _ in found.entries:
        files[file.name] = file.read_bytes()
        for beside in found.arrays.get(file.name.removesuffix(".json"), ()):
            files[beside.name] = beside.read_bytes()
    rows = _origins(files, str(cache.path))
    manifest = {
        "format": FORMAT,
        "answers": rows,
        "sha256": {name: hashlib.sha256(files[name]).hexdigest() for name in sorted(files)},
    }
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with zipfile.ZipFile(aside, "x", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(MANIFEST, json.dumps(manifest, indent=1) + "\n")
            for name in sorted(files):
                archive.writestr(name, files[name])
        os.replace(aside, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise StorageError(f"Cannot write {target}: {error}.") from error
    return rows


def verified(source: Path, max_bytes: int = MAX_BYTES) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """The files in an archive, each of which is what the list says, and where their answers come from.

    Raises:
        StorageError: it is no archive of ours, has something that does not belong there, or anything in it is damaged.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            for name in names:
                if name != MANIFEST and not any(kind.fullmatch(name) for kind in (NAME, ARRAYS, COMPONENT)):
                    raise StorageError(f"{source} has {name!r}, which no cache has written. Nothing of it is used.")
            if len(set(names)) != len(names) or sum(member.file_size for member in members) > max_bytes:
                raise StorageError(f"{source} has a file twice, or more than {max_bytes} bytes. Nothing of it is used.")
            files = {member.filename: archive.read(member) for member in members}
        manifest = json.loads(files.pop(MANIFEST))
        listed = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        if manifest["format"] != FORMAT or manifest["sha256"] != listed:
            raise ValueError("its files are not those of its list")
        rows = _origins(files, str(source))
        if rows != manifest["answers"]:
            raise ValueError("its answers do not come from where its list says")
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile, NotImplementedError) as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{source} cannot be believed: {error}. Nothing of it is used.") from error
    return files, rows


def bring_in(source: Path, cache: DirectoryCache) -> tuple[int, int]:
    """Write what is in an archive into a cache, once all of it is verified; what is there already stays, unless it is
    damaged.

    Returns:
        How many answers were written, and how many were there.

    Raises:
        StorageError: as `verified`, or the folder cannot be written to.
    """
    files, _ = verified(source)
    n_new = n_there = 0
    there = {name for name, content in files.items() if _is_there(cache, name, content)}
    # An entry last: it makes the others part of something.
    for name in sorted(files, key=lambda name: NAME.fullmatch(name) is not None):
        is_entry = NAME.fullmatch(name) is not None
        if name in there:
            n_there += is_entry
            continue
        try:
            cache._write(name, files[name])
        except OSError as error:
            raise StorageError(f"Cannot write to {cache!r}: {error}.") from error
        n_new += is_entry
    return n_new, n_there


def _is_there(cache: DirectoryCache, name: str, content: bytes) -> bool:
    """Whether a file is there as a whole. There may be another answer to the same question, and of the other files the
    name tells the content."""
    file = cache.folder / name
    try:
        if NAME.fullmatch(name) is None:
            return file.read_bytes() == content
        cache.read(file)
    except (OSError, ValueError):
        return False
    return True


def origins(cache: DirectoryCache) -> list[dict[str, Any]]:
    """Where each answer of a cache comes from; all of them are read and checked.

    Raises:
        StorageError: one is damaged.
    """
    found = Inventory.of(cache.folder, time.time())
    files = {file.name: file.read_bytes() for file in found.components}
    files |= {file.name: file.read_bytes() for file, _, _ in found.entries}
    files |= {file.name: file.read_bytes() for beside in found.arrays.values() for file in beside}
    return _origins(files, str(cache.path))


def _origins(files: dict[str, bytes], where: str) -> list[dict[str, Any]]:
    try:
        components = [
            Component.from_json(json.loads(files[name])) for name in sorted(files) if COMPONENT.fullmatch(name)
        ]
    except ValueError as error:
        raise StorageError(f"What {where} says of a component is damaged: {error}.") from error
    rows = []
    for name in sorted(files):
        if NAME.fullmatch(name):
            try:
                stem = name.removesuffix(".json")
                entry = read_entry(files[name], lambda beside, _: bytearray(files[beside]), stem)
            except (ValueError, KeyError) as error:
                raise StorageError(f"{name} in {where} is damaged: {error}.") from error
            rows.append(_row(name, entry, files[name], components))
    return rows


def origin(file: Path, entry: Entry, components: list[Component]) -> dict[str, Any]:
    """Where the answer in a file of a cache comes from, as in an archive's list."""
    return _row(file.name, entry, file.read_bytes(), components)


def _row(file: str, entry: Entry, text: bytes, components: list[Component]) -> dict[str, Any]:
    name, version, schema, build = entry.question["component"][:4]
    of = next((one for one in components if one.key == list(entry.question["component"])), None)
    asked = json.loads(text)["asked"]
    return {
        "file": file,
        "endpoint": entry.question["endpoint"],
        "component": {
            "name": name,
            "version": version,
            "schema": schema,
            "build": build,
            "image": None if of is None else of.image,
        },
        "asked": asked,
        "is_failure": isinstance(entry.answer, Exception),
    }
