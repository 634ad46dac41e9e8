"""The playground: a web page that shows how a response is decoded. Needs the extra `playground`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from cards.errors import MissingExtraError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from cards.decoder import Decoder


def mount(
    app: FastAPI,
    decoder_of: Callable[[str, Mapping[str, Any]], Decoder],
    admission: Callable[[], AbstractAsyncContextManager[None]],
) -> None:
    """Serve the page at `/` of the app, after the existing routes.

    `decoder_of` maps a method name and settings to a Decoder on the models of the server. Each response is decoded inside
    an `admission()` context. Raises MissingExtraError if Gradio is missing.
    """
    try:
        from cards.serve.playground.page import mount_page
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise MissingExtraError("The playground needs Gradio", "playground") from error
    mount_page(app, decoder_of, admission)
