"""The audit of dependencies finds what is planted, and nothing else."""

from __future__ import annotations

import importlib.metadata
import tomllib
from email.message import Message

import pytest

from tools import audit

RULES = {
    "unpinned": [],
    "licences": {"allowed": [r"\bMIT\b"], "denied": [r"\bGPL"], "excepted": {}},
    "bad": {"good": [{"versions": "<2", "why": "it leaks"}]},
}


class Package(importlib.metadata.Distribution):
    def __init__(self, version, **about):
        self._about = Message()
        for name, value in {"Name": "good", "Version": version, **about}.items():
            self._about[name.replace("_", "-")] = value

    @property
    def metadata(self):
        return self._about

    def read_text(self, filename): ...
    def locate_file(self, path): ...


@pytest.mark.parametrize(
    ("pinned", "package", "says"),
    [
        ("2.1", Package("2.1", License="MIT"), ""),
        ("2.1", Package("2.2", License="MIT"), "pinned as 2.1"),
        (None, Package("2.1", License="MIT"), "does not know it"),
        ("2.1", Package("2.1"), "licence 'unknown'"),
        ("2.1", Package("2.1", License_Expression="MIT AND GPL-2.0-only"), "not one of those"),
        ("2.1", Package("2.1", Classifier="License :: OSI Approved :: Permit License"), "'Permit License'"),
        ("1.9", Package("1.9", License="MIT"), "it leaks"),
    ],
)
def test_what_is_planted_is_found(pinned, package, says):
    found = list(audit.faults(RULES, {} if pinned is None else {"good": pinned}, {"good": package}))
    assert (not found) if not says else all(says in line for line in found) and found


def test_only_pins_for_this_machine_count():
    assert audit.pins("a==1\nB_c==2 ; python_version < '3'\nd==3 ; python_version > '3'\n") == {"a": "1", "d": "3"}


def test_each_rule_of_the_project_is_one():
    rules = tomllib.loads((audit.ROOT / "tools" / "audit.toml").read_text())
    pinned = audit.pins((audit.ROOT / "constraints.txt").read_text())
    assert set(rules["bad"]) <= set(pinned)
    worst = {name: Package("0.0.1", License="MIT") for name in rules["bad"]}
    assert list(audit.faults({**rules, "unpinned": list(worst)}, {}, worst))
