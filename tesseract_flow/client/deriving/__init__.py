"""Derivative endpoints that a component lacks, made on this side: what is allowed, by which route, and each call."""
