"""What must not be written down: passwords in addresses, and values whose name says that they are secret.

Addresses and settings end up in journals, reports and logs, which are copied, mailed and backed up.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
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
_HEADER = re.compile(r"(?i)\b(bearer|basic)\s+[a-z0-9._~+/=-]{6,}")


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
    if value is None or isinstance(value, bool):
        return value
    if name and is_secret(name):
        return MASK
    if isinstance(value, Mapping):
        return {key: without_secrets(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item, name) for item in value]
    if isinstance(value, str):
        return _HEADER.sub(rf"\1 {MASK}", _URL.sub(lambda found: _clean_url(found[0]), value))
    return value


def _clean_url(url: str) -> str:
    scheme, _, rest = url.partition("://")
    # Up to the last @, whatever stands before it: a password may hold any sign, written as it should be or not.
    _, at, rest = rest.rpartition("@")
    rest, mark, query = rest.partition("?")
    if query and is_secret(query):
        query = "&".join(
            f"{name}={MASK}" if is_secret(name) else f"{name}{equals}{value}"
            for name, equals, value in (part.partition("=") for part in query.split("&"))
        )
    return f"{scheme}://{MASK}@{rest}{mark}{query}" if at else f"{scheme}://{rest}{mark}{query}"
