"""Tesseracts behind HTTP: the handle, its connections, and how arrays travel over them."""

from tesseract_flow.client.http.handle import HttpTesseract, primals_key

__all__ = ["HttpTesseract", "primals_key"]
