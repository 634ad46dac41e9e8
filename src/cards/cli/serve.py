"""`cards serve`: start an HTTP server."""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from cards.cli.models import load_models
from cards.cli.options import MODEL, REWARD, with_options, with_placement
from cards.cli.profile import PROFILE, profiled
from cards.cli.settings import method_of, with_settings
from cards.errors import MissingExtraError, SettingError, UnreachableTargetWarning, check
from cards.placement import Placement, reward_for
from cards.serve.options import ServerOptions

log = logging.getLogger("cards.serve")
LOCAL = ("127.0.0.1", "localhost", "::1")
KEY_VARIABLE = "CARDS_SERVE_API_KEY"


@with_settings
@with_options(ServerOptions, "options", "Server", leave_out=("api_keys", "playground"))
@with_placement
def serve(
    method: Annotated[str, typer.Option(help="Decoding method of requests that do not set one.")] = "cards",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 listens on all interfaces.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 selects a free one, shown in the log.")
    ] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Accepted API key (repeatable), else the environment variable {KEY_VARIABLE}; "
            "without keys, all requests are accepted."
        ),
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File with accepted API keys, one per line.")] = None,
    playground: Annotated[
        bool | None,
        typer.Option(
            "--playground/--no-playground",
            help="Serve the playground at /; with API keys, the page asks for one.",
            show_default="on if Gradio is installed",
        ),
    ] = None,
    otel: Annotated[
        Literal["console", "otlp"] | None,
        typer.Option(help="Export OpenTelemetry spans: print them, or send them to OTEL_EXPORTER_OTLP_ENDPOINT."),
    ] = None,
    model: Annotated[str, MODEL] = "tiny",
    reward: Annotated[str | None, REWARD] = None,
    profile: Annotated[Path | None, PROFILE] = None,
    *,
    options: ServerOptions,
    placement: Placement,
    settings: dict[str, str],
) -> None:
    """Serve a model, a reward and a method behind an OpenAI-compatible API.

    Endpoints: /v1/completions, /v1/chat/completions, /v1/models. Logs are JSON on standard error. The first Ctrl-C or SIGTERM
    lets running requests finish, the second one stops at once.
    """
    try:
        from cards.serve.app import make_app
        from cards.serve.logs import configure
        from cards.serve.server import bind, run
        from cards.serve.tracing import Tracing, provider_of
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"The server needs {error.name}", "serve") from error
    keys = accepted_keys(api_key, api_key_file)
    shown = find_spec("gradio") is not None if playground is None else playground
    hosts = options.allowed_hosts if keys or host not in LOCAL else (*LOCAL, *options.allowed_hosts)
    options = replace(options, api_keys=keys, playground=shown, allowed_hosts=hosts)
    chosen = method_of(method, profiled(profile, method, model, reward, placement.mix, settings))
    reward = reward_for(model, reward, [chosen])
    tracing = Tracing(provider_of(otel) if otel else None)
    listening = bind(host, port)  # before models are loaded, so that a port in use is reported at once
    configure()
    if not keys and host not in LOCAL:
        log.warning("no API key is set: everyone who can reach the host can use the server", extra={"fields": {"host": host}})
    models = load_models(model, reward, "none", placement, [chosen], options.check_template)
    decoder = models.decoder(chosen)
    app = make_app(models.engine, models.reward, decoder.method, options, tracing)
    warnings.simplefilter("ignore", UnreachableTargetWarning)  # usage and metrics report fallbacks
    run(app, listening, decoder.aclose)


def accepted_keys(given: list[str] | None, file: Path | None) -> tuple[str, ...]:
    """Return the API keys of the options, else of the environment.

    A source that is present but has no key is an error, so that it never opens the server. Raises SettingError.
    """
    keys = list(given or ())
    if file is not None:
        try:
            lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line]
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(f"--api-key-file {file} cannot be read: {error}. Check the path.") from error
        check(bool(lines), f"--api-key-file {file} has no key. Write one key per line.")
        keys += lines
    if not keys and (variable := os.environ.get(KEY_VARIABLE)) is not None:
        check(bool(variable), f"{KEY_VARIABLE} is empty. Set it to a key, or unset it to serve without keys.")
        keys.append(variable)
    return tuple(keys)
