"""The playground: a web page that shows how a response is decoded. Needs the extra `playground`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cards.errors import MissingExtraError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from cards.serve.service import Service


def mount(app: FastAPI, service: Service) -> None:
    """Serve the page at `/` of the app, after the existing routes. Raises MissingExtraError if Gradio is missing."""
    try:
        from cards.serve.playground.page import mount_page
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise MissingExtraError("The playground needs Gradio", "playground") from error
    mount_page(app, service)
