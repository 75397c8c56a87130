"""Trees of arrays as keys: equal if and only if a computation cannot tell them apart. NumPy only, nothing else of ours.

Python's own equality will not do: 1, 1.0 and True are equal and choose different branches, 0.0 and -0.0 are equal and
have different reciprocals, NaN is not equal to itself, and arrays do not compare to a truth value. `InputKey` is a
whole tree as a key, `pack` and `unpack` are trees as bytes, `texts` trees as readable files, `exact` is one leaf. Here
for both sides of the wire: residuals inside a component (`recipes`) and answers in the client (`client`). Not here: the
stores themselves.
"""

from tesseract_flow.exact.keys import InputKey, copied, exact, is_array
from tesseract_flow.exact.packing import pack, unpack

__all__ = ["InputKey", "copied", "exact", "is_array", "pack", "unpack"]
