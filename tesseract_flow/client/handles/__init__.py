"""Kinds of handle: tesseract-core's objects, components served here, replicas, wrappers that limit, keep or derive."""
