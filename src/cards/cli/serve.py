"""`cards serve`: start an HTTP server."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cards.cli.options import METHOD_FLAGS, MODEL, REWARD, with_options, with_placement
from cards.cli.profile import PROFILE
from cards.cli.settings import with_settings
from cards.errors import MissingExtraError, SettingError, UnreachableTargetWarning, check
from cards.placement import Placement
from cards.serve.api_key import ApiKey
from cards.serve.config import ModelEntry, ServerConfig, parse_weight
from cards.serve.options import ServerOptions

log = logging.getLogger("cards.serve")
LOCAL = ("127.0.0.1", "localhost", "::1")
KEY_VARIABLE = "CARDS_SERVE_API_KEY"
SINGLE = ("model", "reward", "method", "profile", "name", "alias", "client_weight")  # options of a server with one entry


def option_names(ctx: typer.Context) -> list[str]:
    """Return the names of the options that a configuration file can have."""
    return [item.name for item in ctx.command.params if item.name not in (None, "config", "profile")]


def _fill(ctx: typer.Context, path: Path | None) -> Path | None:
    """Make the options of a configuration file the defaults of the command. Runs before other options are parsed."""
    if path is not None:
        ctx.default_map = {**(ctx.default_map or {}), **ServerConfig.read(path, option_names(ctx)).options}
    return path


CONFIG = typer.Option(
    "--config",
    callback=_fill,
    is_eager=True,
    help="YAML file with options of this command, entries of models, and API keys; options on the command line win.",
)


@with_settings
@with_options(ServerOptions, "options", "Server", leave_out=("api_keys", "playground"))
@with_placement
def serve(
    ctx: typer.Context,
    method: Annotated[str, typer.Option(*METHOD_FLAGS, help="Decoding method of requests that do not set one.")] = "cards",
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
    alias: Annotated[
        list[str] | None, typer.Option(help="Further model name in the API (repeatable).", rich_help_panel="Server")
    ] = None,
    client_weight: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=LOW:HIGH",
            help="Name of a part of the reward, and bounds of the weight that clients can set (once for each part of the sum).",
            rich_help_panel="Server",
        ),
    ] = None,
    config: Annotated[Path | None, CONFIG] = None,
    *,
    options: ServerOptions,
    placement: Placement,
    settings: dict[str, str],
) -> None:
    """Serve a model, a reward and a method behind an OpenAI-compatible API.

    Endpoints: /v1/completions, /v1/chat/completions, /v1/responses, /v1/models, /tokenize, /detokenize. Logs go to
    standard error, as JSON unless it is a terminal. The first Ctrl-C or SIGTERM lets running requests finish, the second
    one stops at once.
    """
    try:
        from cards.cli.serve_models import LoadedModels
        from cards.serve.app import make_catalog_app
        from cards.serve.logs import configure
        from cards.serve.server import bind, run
        from cards.serve.tracing import Tracing, provider_of
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"The server needs {error.name}", "serve") from error
    read = None if config is None else ServerConfig.read(config, option_names(ctx))
    keys: tuple[str | ApiKey, ...] = accepted_keys(api_key, api_key_file, () if read is None else read.keys)
    shown = find_spec("gradio") is not None if playground is None else playground
    hosts = options.allowed_hosts if keys or host not in LOCAL else (*LOCAL, *options.allowed_hosts)
    options = replace(options, api_keys=keys, playground=shown, allowed_hosts=hosts)
    if read is not None and read.models:
        check_single_options(ctx, settings)
        entries = list(read.models)
    else:
        weights = dict(map(parse_weight, client_weight or ()))
        names: Any = {"name": options.name or "", "aliases": tuple(alias or ()), "max_tokens": options.max_tokens}
        entries = [
            ModelEntry(model=model, reward=reward, method=method, settings=settings, profile=profile, weights=weights, **names)
        ]
    loaded = LoadedModels(placement)
    chosen = loaded.choose(entries)
    tracing = Tracing(provider_of(otel) if otel else None)
    listening = bind(host, port)  # before models are loaded, so that a port in use is reported at once
    configure()
    if not keys and host not in LOCAL:
        log.warning("no API key is set: everyone who can reach the host can use the server", extra={"fields": {"host": host}})
    app = make_catalog_app(loaded.load(chosen, options.check_template), options, tracing)
    warnings.simplefilter("ignore", UnreachableTargetWarning)  # usage and metrics report fallbacks
    run(app, listening, loaded.aclose)


def check_single_options(ctx: typer.Context, settings: Mapping[str, str]) -> None:
    """Raise SettingError if the options of a single model are given, too."""
    sources = {name: ctx.get_parameter_source(name) for name in SINGLE}
    given = [name for name, source in sources.items() if source is not None and source.name != "DEFAULT"]
    flags = [f"--{name.replace('_', '-')}" for name in (*given, *settings)]
    check(not flags, f"{', '.join(flags)} cannot be combined with models in the configuration file. Write them in its entries.")


def accepted_keys(given: list[str] | None, file: Path | None, named: Sequence[ApiKey] = ()) -> tuple[str | ApiKey, ...]:
    """Return the API keys of the options and of the configuration file, else of the environment.

    A source that is present but has no key is an error, so that it never opens the server. Raises SettingError.
    """
    keys: list[str] = list(given or ())
    if file is not None:
        try:
            lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line]
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(f"--api-key-file {file} cannot be read: {error}. Check the path.") from error
        check(bool(lines), f"--api-key-file {file} has no key. Write one key per line.")
        keys += lines
    if not keys and not named and (variable := os.environ.get(KEY_VARIABLE)) is not None:
        check(bool(variable), f"{KEY_VARIABLE} is empty. Set it to a key, or unset it to serve without keys.")
        keys.append(variable)
    return (*keys, *named)
