"""Drivers: what finds the next design. `base` says what one is, `registry` which there are; then one module per
library.

Optax takes one step after the other and is asked for each (`optax`). SciPy and NLopt own their loop and ask us
(`library`, with `scipy` and `nlopt` beside it). For misfits, Optimistix says where to go and we ask (`least_squares`,
with `optimistix` beside it).
"""
