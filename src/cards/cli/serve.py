"""`cards serve`: start an HTTP server."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from cards.cli.models import load_models
from cards.cli.options import MODEL, REWARD, with_placement
from cards.cli.profile import PROFILE, profiled
from cards.cli.settings import method_of, with_settings
from cards.console import show_warning
from cards.errors import MissingExtraError, UnreachableTargetWarning
from cards.placement import Placement
from cards.settings import CONCURRENCY, DEADLINE

LIMITS, OBSERVABILITY = "Limits", "Observability"
LOCAL = ("127.0.0.1", "localhost", "::1")


@with_settings
@with_placement
def serve(
    method: Annotated[str, typer.Option(help="Decoding method of requests that do not set one.")] = "cards",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 listens on all interfaces.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 selects a free one, shown in the log.")
    ] = 8000,
    name: Annotated[str | None, typer.Option(help="Model name in the API.", show_default="name of the model")] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="CARDS_SERVE_API_KEY", help="Accepted API key (repeatable); without keys, all requests are accepted."
        ),
    ] = None,
    cors: Annotated[list[str] | None, typer.Option(help="Allowed CORS origin, or * (repeatable).")] = None,
    playground: Annotated[
        bool | None,
        typer.Option(
            "--playground/--no-playground",
            help="Serve the playground at /.",
            show_default="on if Gradio is installed and no API key is set",
        ),
    ] = None,
    on_reward_failure: Annotated[
        Literal["closed", "plain"],
        typer.Option(
            help="If the reward fails: reject requests with status 503 (closed), or sample without it and report that (plain)."
        ),
    ] = "closed",
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum number of new tokens, unless the request sets it.", rich_help_panel=LIMITS)
    ] = 128,
    limit_tokens: Annotated[
        int, typer.Option(min=1, help="Upper limit of max_tokens in a request.", rich_help_panel=LIMITS)
    ] = 1024,
    limit_prompt: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum number of prompt tokens.", show_default="context length", rich_help_panel=LIMITS),
    ] = None,
    limit_setting: Annotated[
        int, typer.Option(min=1, help="Upper limit of integer settings in a request.", rich_help_panel=LIMITS)
    ] = 1024,
    limit_body: Annotated[int, typer.Option(min=1, help="Maximum size of a request body in bytes.", rich_help_panel=LIMITS)] = 2
    ** 20,
    deadline: Annotated[float, typer.Option(help=DEADLINE, rich_help_panel=LIMITS)] = 120.0,
    max_running: Annotated[
        int | None, typer.Option(min=1, help=CONCURRENCY, show_default="the number of slots", rich_help_panel=LIMITS)
    ] = None,
    max_queue: Annotated[
        int, typer.Option(min=0, help="Maximum number of waiting requests; more get status 429.", rich_help_panel=LIMITS)
    ] = 64,
    drain: Annotated[
        float, typer.Option(help="Seconds for running requests to finish at shutdown.", rich_help_panel=LIMITS)
    ] = 30.0,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Also log prompts.", rich_help_panel=OBSERVABILITY)
    ] = False,
    otel: Annotated[
        Literal["console", "otlp"] | None,
        typer.Option(
            help="Export OpenTelemetry spans: print them, or send them to OTEL_EXPORTER_OTLP_ENDPOINT.",
            rich_help_panel=OBSERVABILITY,
        ),
    ] = None,
    model: Annotated[str, MODEL] = "tiny",
    reward: Annotated[str, REWARD] = "tiny",
    profile: Annotated[Path | None, PROFILE] = None,
    *,
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
        from cards.serve.options import ServerOptions
        from cards.serve.server import bind, run
        from cards.serve.tracing import Tracing, provider_of
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"The server needs {error.name}", "serve") from error
    keys = tuple(api_key or ())
    if not keys and host not in LOCAL:
        show_warning(f"No --api-key is set: everyone who can reach {host} can use the server.")
    options = ServerOptions(
        name=name,
        api_keys=keys,
        cors=tuple(cors or ()),
        playground=not keys and find_spec("gradio") is not None if playground is None else playground,
        on_reward_failure=on_reward_failure,
        default_tokens=min(max_tokens, limit_tokens),
        max_tokens=limit_tokens,
        max_prompt_tokens=limit_prompt,
        max_setting=limit_setting,
        max_body=limit_body,
        deadline=deadline,
        max_running=max_running,
        max_queue=max_queue,
        drain=drain,
        log_prompts=log_prompts,
    )
    chosen = method_of(method, profiled(profile, method, model, reward, settings))
    tracing = Tracing(provider_of(otel) if otel else None)
    listening = bind(host, port)  # before models are loaded, so that a port in use is reported at once
    models = load_models(model, reward, "none", placement)
    decoder = models.decoder(chosen)
    app = make_app(models.engine, models.reward, decoder.method, options, tracing)
    configure()
    warnings.simplefilter("ignore", UnreachableTargetWarning)  # usage and metrics report fallbacks
    run(app, listening, decoder.aclose)
