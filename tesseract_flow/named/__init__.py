"""Functions of the user's by name, from modules and from files."""

from tesseract_flow.named.folders import load_file
from tesseract_flow.named.functions import executed, named_function

__all__ = ["executed", "load_file", "named_function"]
