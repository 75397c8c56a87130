"""A component that holds Python's interpreter lock for as long as it works, as an extension module may."""

import ctypes
import os

from pydantic import BaseModel
from tesseract_core.runtime import Array, Float64


class InputSchema(BaseModel):
    x: Array[(), Float64]
    seconds: int = 0


class OutputSchema(BaseModel):
    y: Array[(), Float64]
    pid: int = 0


def apply(inputs: InputSchema) -> OutputSchema:
    ctypes.PyDLL(None).sleep(inputs.seconds)  # a CDLL would let go of the lock
    return OutputSchema(y=2 * inputs.x, pid=os.getpid())
