"""`cards serve`: its options, and the server around the models."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cards.cli.models import load_models
from cards.cli.options import MODEL, REWARD, with_placement
from cards.cli.profile import PROFILE, profiled
from cards.cli.settings import method_of, with_settings
from cards.console import show_warning
from cards.errors import MissingExtraError, UnreachableTargetWarning
from cards.placement import Placement

LIMITS, WATCHING = "Limits", "Watching"
LOCAL = ("127.0.0.1", "localhost", "::1")


@with_settings
@with_placement
def serve(
    method: Annotated[str, typer.Option(help="Decoding method of requests that name none.")] = "cards",
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is every address of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one, which the log tells.")] = 8000,
    name: Annotated[str | None, typer.Option(help="Of the model in the API; its own unless given.")] = None,
    api_key: Annotated[
        list[str] | None, typer.Option(envvar="CARDS_SERVE_API_KEY", help="Let in who sends it (repeatable). None: everybody.")
    ] = None,
    cors: Annotated[list[str] | None, typer.Option(help="An origin whose pages may call, or * (repeatable).")] = None,
    playground: Annotated[
        bool | None, typer.Option("--playground/--no-playground", help="A page at /; on if Gradio is there and no key is set.")
    ] = None,
    on_reward_failure: Annotated[
        Literal["closed", "plain"],
        typer.Option(help="Refuse what the reward cannot steer (503), or answer by plain sampling and say so."),
    ] = "closed",
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens of an answer whose request does not say.", rich_help_panel=LIMITS)
    ] = 128,
    limit_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens that a request may ask for.", rich_help_panel=LIMITS)
    ] = 1024,
    limit_prompt: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of a prompt; else what the model reads.", rich_help_panel=LIMITS)
    ] = None,
    limit_setting: Annotated[
        int, typer.Option(min=1, help="Highest whole number among a request's settings.", rich_help_panel=LIMITS)
    ] = 1024,
    limit_body: Annotated[int, typer.Option(min=1, help="Most bytes of a request.", rich_help_panel=LIMITS)] = 2**20,
    deadline: Annotated[
        float, typer.Option(help="Seconds after which the answer so far is taken.", rich_help_panel=LIMITS)
    ] = 120.0,
    max_running: Annotated[
        int | None, typer.Option(min=1, help="Answers decoded at once; else one a row.", rich_help_panel=LIMITS)
    ] = None,
    max_queue: Annotated[
        int, typer.Option(min=0, help="Requests that wait; the next is told to come again.", rich_help_panel=LIMITS)
    ] = 64,
    drain: Annotated[
        float, typer.Option(help="Seconds for answers to finish when the server ends.", rich_help_panel=LIMITS)
    ] = 30.0,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write prompts to the log too.", rich_help_panel=WATCHING)
    ] = False,
    otel: Annotated[
        Literal["console", "otlp"] | None,
        typer.Option(help="Spans of OpenTelemetry: printed, or to OTEL_EXPORTER_OTLP_ENDPOINT.", rich_help_panel=WATCHING),
    ] = None,
    model: Annotated[str, MODEL] = "tiny",
    reward: Annotated[str, REWARD] = "tiny",
    profile: Annotated[Path | None, PROFILE] = None,
    *,
    placed: dict[str, Any],
    **settings: str | None,
) -> None:
    """Serve OpenAI's API (/v1/completions, /v1/chat/completions, /v1/models) on a model, a reward and a method.

    Logs are JSON on standard error. Ctrl-C or SIGTERM lets the running answers finish; the second ends at once.
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
        show_warning(f"No --api-key is set: whoever reaches {host} is let in.")
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
    listening = bind(host, port)  # before models are loaded, so that a port that is taken is told at once
    models = load_models(model, reward, "none", Placement(**placed))
    decoder = models.decoder(chosen)
    app = make_app(models.engine, models.reward, decoder.method, options, tracing)
    configure()
    warnings.simplefilter("ignore", UnreachableTargetWarning)  # the usage and the metrics say it
    run(app, listening, decoder.aclose)
