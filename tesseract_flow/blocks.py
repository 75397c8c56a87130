"""Prefect blocks: where a Tesseract is served and how to be let in, kept in Prefect's database instead of in a form.

The lowest module that imports Prefect; everything below runs without it.
"""

import base64
from typing import Annotated, Literal

from prefect.blocks.core import Block
from pydantic import Field, SecretStr

from tesseract_flow.client import AbstractTesseract, open_tesseract


class TesseractEndpoint(Block):
    """Address of a served Tesseract, with credentials.

    In a flow's settings, `"block:NAME"` stands for the Tesseract of the block called NAME.

    >>> TesseractEndpoint(url="http://solver:8000").open()  # doctest: +SKIP
    HttpTesseract(http://solver:8000)
    """

    _block_type_name = "Tesseract Endpoint"
    _block_type_slug = "tesseract-endpoint"
    # No _logo_url: Prefect takes web addresses alone (no data: URL), and its pages would ask somebody outside for it.
    # Without one V2 shows an empty square.
    _description = "Address of a served Tesseract, with credentials."

    url: str = Field(description="Root of the server, such as http://solver:8000")
    label: str | None = Field(default=None, description="What to call it; default the name in its schema")
    # Each secret is a field of its own: inside a dict Prefect would hand it out in clear.
    token: SecretStr | None = Field(default=None, description="Sent as Authorization: Bearer")
    user: str | None = Field(default=None, description="For basic authentication")
    password: SecretStr | None = Field(default=None, description="For basic authentication")
    read_timeout: float | None = Field(
        default=None, gt=0, description="Seconds without an answer; empty waits for as long as the solve takes"
    )

    derive: Literal["exact", "central", "forward", "spsa"] | None = Field(
        default=None,
        description="How to make derivative endpoints that it lacks: exactly from the others, or else by finite "
        "differences of this kind; empty does not",
    )

    cache: str | None = Field(
        default=None, description="Folder where answers are kept, so that no solver answers twice; empty keeps none"
    )
    max_in_flight: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        default=None,
        description="The most requests under way at once, as licences may demand it; auto finds out what the server "
        "takes; empty is no limit",
    )
    limit_folder: str | None = Field(
        default=None,
        description="Folder in which all processes that name it count these requests together; empty counts within one",
    )

    def open(self) -> AbstractTesseract:
        """A handle to the Tesseract. Nothing is connected before it is used."""
        token = self.token.get_secret_value() if self.token is not None else None
        headers = {}
        if self.user is not None:
            password = self.password.get_secret_value() if self.password is not None else ""
            basic = base64.b64encode(f"{self.user}:{password}".encode()).decode("ascii")  # RFC 7617
            headers["Authorization"] = f"Basic {basic}"
        return open_tesseract(
            self.url,
            derive=self.derive,
            cache=self.cache,
            max_in_flight=self.max_in_flight,
            limit_folder=self.limit_folder,
            label=self.label,
            token=token,
            headers=headers,
            read_timeout=self.read_timeout,
        )
