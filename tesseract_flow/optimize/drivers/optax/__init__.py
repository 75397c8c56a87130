"""Optax as a driver: `named` is which optimiser, `search` one update of it, `engine` what comes of an update."""
