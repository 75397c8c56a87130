"""Whether what is installed is what was pinned, under licences that we may use, and in no version known to be bad.

    python tools/audit.py

Asks nobody. So it knows of no vulnerability that is not in `audit.toml`, and takes a package's word for its licence;
that a package's files are what its author published is for whoever installs it to see (`pip download --require-hashes`
and the like).
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from packaging.markers import Marker
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def pins(text: str) -> dict[str, str]:
    """The versions that are pinned for this Python and this machine."""
    found = {}
    for line in text.splitlines():
        requirement, _, marker = line.partition(";")
        name, equals, version = requirement.strip().partition("==")
        if equals and (not marker.strip() or Marker(marker.strip()).evaluate()):
            found[canonicalize_name(name)] = version.strip()
    return found


def licences(about: importlib.metadata.PackageMetadata) -> list[str]:
    """What a package says of its licence, the most exact word first."""
    found = [about["License-Expression"]] if "License-Expression" in about else []
    classifiers = [text for text in about.get_all("Classifier") or () if text.startswith("License :: ")]
    found += [text.rpartition(" :: ")[2] for text in classifiers if text != "License :: OSI Approved"]
    if not found and "License" in about:
        found.append(about["License"].strip().partition("\n")[0][:80])
    return found


def faults(
    rules: dict, pinned: dict[str, str], installed: Mapping[str, importlib.metadata.Distribution]
) -> Iterator[str]:
    allowed = re.compile("|".join(rules["licences"]["allowed"]), re.IGNORECASE)
    denied = re.compile("|".join(rules["licences"]["denied"]), re.IGNORECASE)
    excepted, unpinned = rules["licences"]["excepted"], rules["unpinned"]
    for name, package in sorted(installed.items()):
        if name in pinned and pinned[name] != package.version:
            yield f"{name} is installed in version {package.version}, and pinned as {pinned[name]}: make install"
        if name not in pinned and name not in unpinned:
            yield f"{name} {package.version} is installed, and constraints.txt does not know it"
        said = " / ".join(licences(package.metadata))
        if name not in excepted and (denied.search(said) or not allowed.search(said)):
            yield f"{name} {package.version}: licence {said or 'unknown'!r} is not one of those that are allowed"
    for name, entries in rules["bad"].items():
        for entry in entries:
            for what, version in (("pinned", pinned.get(name)), ("installed", _version(installed.get(name)))):
                if version is not None and version in SpecifierSet(entry["versions"], prereleases=True):
                    yield f"{name} {version} is {what}, and {entry['versions']} is known to be bad: {entry['why']}"
    for name in [*excepted, *unpinned]:
        if name not in installed:
            yield f"audit.toml makes an exception for {name}, which is not installed"


def _version(package: importlib.metadata.Distribution | None) -> str | None:
    return None if package is None else package.version


def main() -> int:
    rules = tomllib.loads((ROOT / "tools" / "audit.toml").read_text())
    pinned = pins((ROOT / "constraints.txt").read_text())
    installed = {str(canonicalize_name(one.metadata["Name"])): one for one in importlib.metadata.distributions()}
    found = list(faults(rules, pinned, installed))
    for line in found:
        print(line)
    print(f"{len(installed)} packages are installed, {len(found)} faults.")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
