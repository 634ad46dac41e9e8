"""The playground: a web page that shows how a response is decoded."""

from __future__ import annotations

from fastapi import FastAPI

from cards.serve.catalog import Catalog
from cards.serve.playground.files import PageFiles
from cards.serve.playground.routes import playground


def mount(app: FastAPI, catalog: Catalog) -> None:
    """Serve the page at `/` of the app, after the existing routes."""
    app.include_router(playground(catalog))
    app.mount("/", PageFiles())
