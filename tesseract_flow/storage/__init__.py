"""Files by address: a folder, or any place that fsspec knows (`s3://`, `gs://`, `memory://`), with the same few verbs.

A store holds small named files side by side. What all of them give: a file is written whole or not at all, and one
process at a time possesses a store. In a folder the kernel keeps that promise; elsewhere a lease does (`lease`). What
the files mean is the business of others. NumPy is not needed here, and fsspec only where an address asks for it.
"""

from tesseract_flow.storage.base import AbstractPossession, AbstractStore
from tesseract_flow.storage.folder import FolderStore
from tesseract_flow.storage.lease import Lease
from tesseract_flow.storage.names import folder_name, slug
from tesseract_flow.storage.opening import is_url, local_folder, open_store, place_in
from tesseract_flow.storage.roots import require_allowed, require_allowed_module
from tesseract_flow.storage.secrets import MASK, is_secret, told_apart, without_secrets, without_tags
from tesseract_flow.storage.url import UrlStore

__all__ = [
    "MASK",
    "AbstractPossession",
    "AbstractStore",
    "FolderStore",
    "Lease",
    "UrlStore",
    "folder_name",
    "is_secret",
    "is_url",
    "local_folder",
    "open_store",
    "place_in",
    "require_allowed",
    "require_allowed_module",
    "slug",
    "told_apart",
    "without_secrets",
    "without_tags",
]
