"""Ours against the peers, in turn, in one run on one machine: `make bench`."""
