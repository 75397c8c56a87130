"""Kinds of result cache: in memory, in a folder; and what they have in common."""
