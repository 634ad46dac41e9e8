"""Options of a server: limits on its clients and the policy for a failing reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cards.errors import check
from cards.prompts import ChatOptions
from cards.serve.api_key import ApiKey, named_keys
from cards.settings import CONCURRENCY, setting

OnRewardFailure = Literal["closed", "plain"]
UnknownFields = Literal["refuse", "ignore"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions(ChatOptions):
    """Limits and policies of a server, and defaults for its chats. Raises SettingError."""

    name: str | None = setting(None, help="Model name in the API.", unset="name of the model")
    api_keys: tuple[str | ApiKey, ...] = setting((), help="Accepted API keys; without keys, all requests are accepted.")
    limit_key_running: int | None = setting(None, help="Maximum number of requests in progress per API key.", at_least=1)
    limit_key_requests: int | None = setting(None, help="Maximum number of requests per minute and API key.", at_least=1)
    limit_key_tokens: int | None = setting(
        None, help="Maximum number of prompt and response tokens per minute and API key.", at_least=1
    )
    cors: tuple[str, ...] = setting((), help="Allowed CORS origin, or * (repeatable).")
    allowed_hosts: tuple[str, ...] = setting(
        (),
        help="Accepted host name of the server in requests, or * (repeatable).",
        unset="any; on a local address without keys, only local names",
    )
    playground: bool = setting(False, help="Serve the playground at /; with API keys, the page asks for one.")
    on_reward_failure: OnRewardFailure = setting(
        "closed",
        help="If the reward fails: reject requests with status 503 (closed), or sample without it and report that (plain).",
    )
    unknown_fields: UnknownFields = setting(
        "refuse", help="Fields of requests with unknown names: status 400 (refuse), or no effect (ignore)."
    )
    max_tokens: int = setting(128, help="Maximum number of new tokens, unless the request sets it.", at_least=1)
    limit_tokens: int = setting(1024, help="Upper limit of max_tokens in a request.", at_least=1)
    limit_prompt: int | None = setting(None, help="Maximum number of prompt tokens.", at_least=1, unset="context length")
    limit_setting: int = setting(1024, help="Upper limit of integer settings in a request.", at_least=1)
    limit_body: int = setting(2**20, help="Maximum size of a request body in bytes.", at_least=1)
    limit_connections: int = setting(1000, help="Maximum number of open connections, also idle ones.", at_least=1)
    deadline: float = setting(120.0, help="Seconds from the arrival of a request to its end.", above=0)
    header_timeout: float = setting(10.0, help="Seconds for the head of a request to arrive.", above=0)
    read_timeout: float = setting(30.0, help="Seconds for the body of a request to arrive.", above=0)
    keep_alive: int = setting(75, help="Seconds until an idle connection is closed.", at_least=1)
    max_running: int | None = setting(None, help=CONCURRENCY, at_least=1, unset="the number of slots")
    max_queue: int = setting(64, help="Maximum number of waiting requests; more get status 429.", at_least=0)
    drain: float = setting(30.0, help="Seconds for running requests to finish at shutdown.", above=0)
    log_prompts: bool = setting(False, help="Also log prompts.")

    def __post_init__(self) -> None:
        ChatOptions.__post_init__(self)
        for name in ("api_keys", "cors", "allowed_hosts"):  # a string would count as a sequence of one-letter keys
            check(not isinstance(getattr(self, name), str), f"{name} must be a list of texts, got one text.")
        named_keys(self.api_keys)
