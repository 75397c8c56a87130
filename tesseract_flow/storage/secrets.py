"""What must not be written down: passwords in addresses, and values whose name says that they are secret.

Addresses and settings end up in journals, reports and logs, which are copied, mailed and backed up. Where it matters
whether a hidden value is still the same (`told_apart`), a short and slow digest of it stands beside the mask: enough to
see a change, too little to find a value by.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import numbers
import re
from collections.abc import Callable, Mapping
from typing import Any

MASK = "***"

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_SECRET = frozenset(
    {
        *("password", "passwd", "passphrase", "passcode", "pwd", "secret", "secrets", "token", "bearer", "cookie"),
        *("credential", "credentials", "authorization", "auth", "apikey", "signature", "jwt", "otp", "pin"),
    }
)
_SECRET_KEYS = frozenset({(kind, "key") for kind in ("api", "access", "private", "account", "shared")})
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://\S+")
_HEADER = re.compile(r"(?i)\b(bearer|basic)\s+([a-z0-9._~+/=-]{6,})")


def is_secret(name: str) -> bool:
    """Whether a value of this name is better not shown: `password`, `apiToken`, `AWS_SECRET_ACCESS_KEY`.

    `n_tokens` is a number, and `key` alone is what a random key or a run's key is called.
    """
    words = [word.lower() for word in _WORDS.findall(name)]
    return bool(_SECRET.intersection(words)) or bool(_SECRET_KEYS.intersection(itertools.pairwise(words)))


def without_secrets(value: Any, name: str = "") -> Any:
    """`value` (nested dicts, lists, text) with `MASK` where it held a secret: by name, or inside of an address.

    >>> without_secrets({"url": "http://bob:pw@solver:8000", "token": "abc", "n": 3})
    {'url': 'http://***@solver:8000', 'token': '***', 'n': 3}
    """
    return _hidden(value, name, lambda secret: MASK)


def told_apart(value: Any, name: str = "") -> Any:
    """The same, with a tag behind each mask that is another one for another value.

    A name such as `pin` or `signature` may well be that of an input on which a result depends. The tag has 24 bits of
    a scrypt digest: two values share one with a chance of 6e-8, and who guesses has one in 2^24 of all guesses right
    for nothing.
    """
    return _hidden(value, name, _tagged)


def without_tags(text: str, *, numbers_too: bool = False) -> str:
    """`text` with bare masks, except for those of numbers, which are settings rather than secrets."""
    return (_TAG if numbers_too else _TEXT_TAG).sub(MASK, text)


_TAG, _TEXT_TAG = re.compile(r"\*\*\*[#=][0-9a-f]{6}"), re.compile(r"\*\*\*#[0-9a-f]{6}")


def _tagged(secret: Any) -> str:
    is_number = isinstance(secret, numbers.Number)
    return f"{MASK}{'=' if is_number else '#'}{_digest(repr(secret))}"


@functools.lru_cache(maxsize=256)
def _digest(text: str) -> str:
    return hashlib.scrypt(text.encode(), salt=b"tesseract-flow", n=2**14, r=8, p=1, dklen=3).hex()


def _hidden(value: Any, name: str, mask: Callable[[Any], str]) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if name and is_secret(name):
        return mask(value)
    if isinstance(value, Mapping):
        return {key: _hidden(item, str(key), mask) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(item, name, mask) for item in value]
    if isinstance(value, str):
        text = _URL.sub(lambda found: _clean_url(found[0], mask), value)
        return _HEADER.sub(lambda found: f"{found[1]} {mask(found[2])}", text)
    return value


def _clean_url(url: str, mask: Callable[[Any], str]) -> str:
    scheme, _, rest = url.partition("://")
    # Up to the last @, whatever stands before it: a password may hold any sign, written as it should be or not.
    user, at, rest = rest.rpartition("@")
    rest, mark, query = rest.partition("?")
    if query and is_secret(query):
        query = "&".join(
            f"{name}={mask(value)}" if is_secret(name) else f"{name}{equals}{value}"
            for name, equals, value in (part.partition("=") for part in query.split("&"))
        )
    return f"{scheme}://{mask(user) + '@' if at else ''}{rest}{mark}{query}"
