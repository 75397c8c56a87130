"""Functions of the user's by name, from modules and from files."""

from tesseract_flow.named.folders import load_file
from tesseract_flow.named.functions import executed, line_of, named_function

__all__ = ["executed", "line_of", "load_file", "named_function"]
