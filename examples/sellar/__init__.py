"""Sellar's problem from one YAML file, with both forms of coupling."""
