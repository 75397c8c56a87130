"""Cantilever of least compliance: three Tesseracts in a row, and the answer in closed form."""
