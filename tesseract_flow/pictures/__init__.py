"""Pictures of what feeds what: of a pipeline, or of any function that calls Tesseracts. One graph, several forms."""

from tesseract_flow.pictures.graph import Arrow, Box, Picture
from tesseract_flow.pictures.making import picture

__all__ = ["Arrow", "Box", "Picture", "picture"]
