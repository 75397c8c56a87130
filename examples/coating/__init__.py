"""Antireflection coatings: the thicknesses of a stack of thin films."""
