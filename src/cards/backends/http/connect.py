"""Detect the server at an address, and create the engine or reward for it."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cards.backends.http.client import Client, RejectedRequestError
from cards.backends.http.openai import OpenAIEngine, tokens_of
from cards.backends.http.rewards import TEI_REWARDS, PlainReward
from cards.backends.http.served import ModelFiles, ServedModel, model_card
from cards.engines.base import Engine
from cards.engines.detokenizer import UNFINISHED
from cards.errors import ModelError, SettingError, check
from cards.rewards.base import Reward
from cards.tokenizer import Tokenizer

if TYPE_CHECKING:
    from cards.backends.classifier import Output

log = logging.getLogger("cards")
UNKNOWN_CONTEXT = 2**20  # if the server does not report it; the server then rejects texts that are too long
UNKNOWN_VOCABULARY = 2**18  # an upper bound
TOP_COUNTS = (20, 10, 5, 1, 0)  # numbers of log-probabilities to try, because servers reject more than they support
EXTRAS = (("top_k", 0), ("min_p", 0.0), ("repetition_penalty", 1.0), ("return_token_ids", True), ("skip_special_tokens", False))
LLAMA_CPP = (
    ("repeat_penalty", 1.0),  # llama-cpp-python's default is 1.1
    ("samplers", ("temperature", "top_k", "min_p", "top_p")),  # the default applies top_p first and may apply penalties
    ("timings_per_token", True),  # reports the number of cached tokens
)
PROBE = "The quick brown"


def connect_engine(
    address: str,
    *,
    tokenizer: str | Tokenizer | None = None,
    slots: int = 32,
    context: int | None = None,
    vocabulary_size: int | None = None,
    api_key: str | None = None,
    **options: Any,
) -> Engine:
    """Return the engine for a model at http(s)://host:port/v1, or http(s)://host:port/v1#NAME if the server has several.

    tokenizer: the model's tokenizer, or its folder or Hugging Face name. By default, the name that vLLM reports is tried,
    and llama.cpp's server is asked for its chat template.
    slots: maximum number of simultaneous requests.
    api_key, and `timeout` and `retries` in options: see Client.

    Raises SettingError, ModelError or UnavailableError.
    """
    address, _, name = address.partition("#")
    options["api_key"] = api_key or os.environ.get("CARDS_API_KEY") or os.environ.get("OPENAI_API_KEY")
    client = new_client(address, connections=slots, **options)
    card = client.run(model_card(client, "/models", name))
    vllm = card.get("owned_by") == "vllm"
    local = ModelFiles.find(tokenizer, [card["root"], card["id"]] if vllm else [], "lm")
    meta = card.get("meta") or {}  # sent by llama.cpp
    limit = card.get("max_model_len") or meta.get("n_ctx") or meta.get("n_ctx_train") or UNKNOWN_CONTEXT
    vocabulary = vocabulary_size or meta.get("n_vocab") or (local.vocabulary if local else UNKNOWN_VOCABULARY)
    served = ServedModel(card["id"], min(context or limit, limit), vocabulary)
    if vllm and client.run(has_processor(client, served.model)):
        from cards.backends.http.vllm import VLLMHTTPEngine, check_mode

        if local is None:
            raise ModelError(
                f"The tokenizer of {served.model!r} was found neither at {card['root']!r} nor by its name. "
                "Give its folder or Hugging Face name (tokenizer=...)."
            )
        client.run(check_mode(client, served.model))
        return VLLMHTTPEngine(client, replace(served, ids=True), local, slots=slots)
    served = client.run(probe(client, served, local.tokenizer if local else None))
    if local is None and card.get("owned_by") == "llamacpp":
        root = new_client(address, **options)
        root.url = root.url.copy_with(path=root.url.path.removesuffix("/v1"))
        with suppress(RejectedRequestError):
            local = ModelFiles.from_props(root.run(root.get("/props")))
    return OpenAIEngine(client, served, local, slots=slots)


def connect_reward(
    address: str,
    *,
    output: Output = None,
    target: float | None = None,
    tokenizer: str | None = None,
    slots: int = 32,
    context: int | None = None,
    **options: Any,
) -> Reward:
    """Return the reward at an address. The path selects the format.

    .../classify and .../pooling are vLLM's, .../rerank and .../predict are text-embeddings-inference's, and any other path
    uses plain JSON. Without a path, or with /v1, the format is detected.

    output: the output to use, as in ClassifierReward.
    tokenizer: folder or Hugging Face name of the tokenizer of a vLLM model, if the name that vLLM reports does not work.
    options: `api_key`, `timeout` and `retries` of the Client.

    Raises SettingError, ModelError or UnavailableError.
    """
    client = new_client(address, connections=slots, **options)
    path, _, kind = client.url.path.rstrip("/").rpartition("/")
    if kind in ("", "v1"):
        client.url = client.url.copy_with(path=path)
        kind = client.run(detect_reward_kind(client))
    elif kind in ("classify", "pooling", *TEI_REWARDS):
        client.url = client.url.copy_with(path=path.removesuffix("/v1"))
    if kind in ("classify", "pooling"):
        from cards.backends.http.vllm_rewards import VLLMHTTPReward

        return VLLMHTTPReward.connect(client, kind, tokenizer, output=output, target=target, context=context)
    if kind in TEI_REWARDS:
        return TEI_REWARDS[kind](client, output=output, target=target)
    return PlainReward(client, output=output, target=target)


async def detect_reward_kind(client: Client) -> str:
    """Return the last part of the path that gives scores, or an empty string for plain JSON. Raises SettingError."""
    for path in ("/v1/models", "/info"):
        try:
            found = await client.get(path)
        except RejectedRequestError as error:
            if error.status in (401, 403):
                raise
            continue
        if path == "/v1/models":
            return "classify"
        types = found.get("model_type") or {}
        for model_type, kind in (("reranker", "rerank"), ("classifier", "predict")):
            if model_type in types:
                return kind
        raise SettingError(
            f"The model at {client.address} must be a classifier or a reranker to be a reward, got {', '.join(types)}."
        )
    return ""


def new_client(
    address: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> Client:
    """Return a client with these options. Raises SettingError if options of a model in this process are given."""
    check(
        device == dtype == "auto" and threads is None and not trust_remote_code,
        "The server chooses device, dtype, threads and trust_remote_code. Leave them out for a model at an address.",
    )
    return Client(address, **options)


async def has_processor(client: Client, model: str) -> bool:
    """Return whether a vLLM server runs the logits processor of this package, which rejects unknown options."""
    body = {"model": model, "prompt": PROBE, "max_tokens": 1, "vllm_xargs": {"cards_probe": 1}}
    try:
        await client.post("/completions", body)
    except RejectedRequestError as error:
        if "cards_probe" not in str(error):
            raise
        return True
    return False


async def probe(client: Client, served: ServedModel, tokenizer: Tokenizer | None) -> ServedModel:
    """Return `served` with the features that short test requests detect.

    Raises ModelError if the server has no completions, or has another tokenizer.
    """
    rejection: RejectedRequestError | None = None
    for top in TOP_COUNTS:
        for extras in (EXTRAS + LLAMA_CPP, EXTRAS, ()):  # servers may reject unknown fields
            body = {"model": served.model, "prompt": PROBE, "max_tokens": 1, "temperature": 1.0} | dict(extras)
            body |= {"logprobs": top} if top else {}
            try:
                [choice] = (await client.post("/completions", body))["choices"]
                [cool] = (await client.post("/completions", body | {"temperature": 0.1}))["choices"]
            except RejectedRequestError as error:
                if error.status == 404:
                    raise ModelError(
                        f"{error} A server must have /completions, because a chat endpoint cannot continue a response."
                    ) from error
                if error.status in (401, 403):
                    raise
                rejection = error
                continue
            if not extras:
                log.warning("%s does not support top_k: candidates are drawn with temperature and top_p only.", client.address)
            return replace(
                served,
                top=_usable_logprobs(choice, cool, top),
                extras=extras,
                ids=tokenizer is not None and _returns_ids(choice, tokenizer),
            )
    assert rejection is not None
    raise rejection


def _usable_logprobs(warm: dict[str, Any], cool: dict[str, Any], requested: int) -> int:
    """Return the number of log-probabilities per token, or 0 if they depend on the temperature, unlike the model's."""
    tops = [tokens[0].top if (tokens := tokens_of(choice)) else () for choice in (warm, cool)]
    if not all(tops) or abs(max(tops[0]) - max(tops[1])) > 0.1:
        return 0
    return min(requested, *map(len, tops))


def _returns_ids(choice: dict[str, Any], tokenizer: Tokenizer) -> bool:
    """Return whether the server returns token ids. Raises ModelError if they differ from those of the tokenizer."""
    tokens = tokens_of(choice)
    if not tokens or tokens[0].id is None:
        return False
    content = (choice.get("logprobs") or {}).get("content") or ()
    names = {other["id"]: other["token"].strip() for entry in content for other in entry.get("top_logprobs") or ()}
    readable = {id_: name for id_, name in names.items() if name and UNFINISHED not in name}
    expected = tokenizer(PROBE)["input_ids"]
    returned = choice.get("prompt_token_ids") or expected
    if returned != expected or any(str(tokenizer.decode([i])).strip() != readable[i] for i in readable):
        raise ModelError("The given tokenizer does not match the served model. Give the tokenizer of that model.")
    return True
