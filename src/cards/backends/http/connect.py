"""Find out what serves a model at an address, and make the engine or the reward for it."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cards.backends.http.client import Client, RefusedError
from cards.backends.http.openai import OpenAIEngine, tokens_of
from cards.backends.http.rewards import SHAPES, PlainReward
from cards.backends.http.served import ModelFiles, ServedModel, card_of
from cards.engines.base import Engine
from cards.engines.text import UNFINISHED
from cards.errors import ModelError, SettingError, check
from cards.rewards.base import Reward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cards.backends.classifier import Output

log = logging.getLogger("cards")
LARGEST_CONTEXT = 2**20  # where a server does not say: it refuses what is too long for it
LARGEST_VOCABULARY = 2**18
TOPS = (20, 10, 5, 1, 0)  # log-probabilities to ask for; servers refuse more than they show
EXTRAS = (("top_k", 0), ("min_p", 0.0), ("repetition_penalty", 1.0), ("return_token_ids", True))
LLAMA_CPP = (
    ("repeat_penalty", 1.0),  # 1.1 by default in llama-cpp-python
    ("samplers", ("temperature", "top_k", "top_p")),  # by default top_p comes first, and there may be penalties
    ("timings_per_token", True),  # they say what it found in its cache
)
PROBE = "The quick brown"


def connect_engine(
    address: str,
    *,
    tokenizer: str | PreTrainedTokenizerBase | None = None,
    api_key: str | None = None,
    timeout: float = 60.0,
    retries: int = 4,
    slots: int = 32,
    context: int | None = None,
    vocabulary_size: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> Engine:
    """The engine of a model served at http(s)://host:port/v1, or, of several there, at http(s)://host:port/v1#name.

    tokenizer: the model's, or its folder or Hugging Face name; without it that of the served model is looked for if the
    server is vLLM, and llama.cpp's server is asked for its chat template. slots: requests that are made at once. Raises
    SettingError, ModelError or UnavailableError.
    """
    check_placement(device, dtype)
    address, _, wanted = address.partition("#")
    key = api_key or os.environ.get("CARDS_API_KEY") or os.environ.get("OPENAI_API_KEY")
    client = Client(address, api_key=key, timeout=timeout, retries=retries, connections=slots)
    card = client.at_once(card_of(client, "/models", wanted))
    vllm = card.get("owned_by") == "vllm"
    local = ModelFiles.find(tokenizer, [card["root"], card["id"]] if vllm else [], "lm")
    meta = card.get("meta") or {}  # llama.cpp's
    most = card.get("max_model_len") or meta.get("n_ctx") or meta.get("n_ctx_train") or LARGEST_CONTEXT
    vocabulary = vocabulary_size or meta.get("n_vocab") or (local.vocabulary if local else LARGEST_VOCABULARY)
    served = ServedModel(card["id"], min(context or most, most), vocabulary)
    if vllm and client.at_once(has_processor(client, served.model)):
        from cards.backends.http.vllm import VLLMHTTPEngine, check_mode

        if local is None:
            raise ModelError(
                f"The tokenizer of {served.model!r} is not to be found here, neither at {card['root']!r} nor by that name: "
                "give its folder or Hugging Face name (tokenizer=...)."
            )
        client.at_once(check_mode(client, served.model))
        return VLLMHTTPEngine(client, replace(served, ids=True), local, slots=slots)
    served = client.at_once(probed(client, served, local.tokenizer if local else None))
    if local is None and card.get("owned_by") == "llamacpp":
        root = Client(address.rstrip("/").removesuffix("/v1"), api_key=key, timeout=timeout, retries=retries)
        with suppress(RefusedError):
            local = ModelFiles.of_props(root.at_once(root.get("/props")))
    return OpenAIEngine(client, served, local, slots=slots)


def connect_reward(
    address: str,
    *,
    output: Output = None,
    target: float | None = None,
    tokenizer: str | None = None,
    api_key: str | None = None,
    timeout: float = 60.0,
    retries: int = 4,
    slots: int = 32,
    context: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> Reward:
    """The reward at an address: vLLM's .../classify or .../pooling, text-embeddings-inference's .../rerank or .../predict, any
    other path for plain JSON. Without a path, or with /v1, the server is asked what it is.

    output: which of several outputs counts, as in ClassifierReward. tokenizer: of a vLLM model, if it is not found by itself.
    Raises SettingError, ModelError or UnavailableError.
    """
    check_placement(device, dtype)
    address = address.rstrip("/")
    client = Client(address, api_key=api_key, timeout=timeout, retries=retries, connections=slots)
    server, _, kind = address.rpartition("/")
    if "://" not in server:  # no path at all
        server, kind = address, ""
    if kind in ("", "v1"):
        client.address = server = address.removesuffix("/v1")
        kind = client.at_once(kind_of_reward(client))
    elif kind in ("classify", "pooling", *SHAPES):
        client.address = server.removesuffix("/v1")
    if kind in ("classify", "pooling"):
        from cards.backends.http.vllm_rewards import VLLMHTTPReward

        return VLLMHTTPReward.connect(client, kind, tokenizer, output=output, target=target, context=context)
    if kind in SHAPES:
        return SHAPES[kind](client, output=output, target=target)
    return PlainReward(client, output=output, target=target)


async def kind_of_reward(client: Client) -> str:
    """What serves there: the path to ask for scores, or nothing, which is plain JSON."""
    for path in ("/v1/models", "/info"):
        try:
            found = await client.get(path)
        except RefusedError as error:
            if error.status in (401, 403):
                raise
            continue
        if path == "/v1/models":
            return "classify"
        kinds = found.get("model_type") or {}
        for kind, shape in (("reranker", "rerank"), ("classifier", "predict")):
            if kind in kinds:
                return shape
        raise SettingError(f"The model at {client.address} ({', '.join(kinds)}) gives no scores: a reward is a classifier.")
    return ""


def check_placement(device: str, dtype: str) -> None:
    check(device == dtype == "auto", "device and dtype are the server's business: leave them out for a model at an address.")


async def has_processor(client: Client, model: str) -> bool:
    """Whether the logits processor of this package runs in a vLLM server: it refuses an option that it does not know."""
    asked = {"model": model, "prompt": PROBE, "max_tokens": 1, "vllm_xargs": {"cards_probe": 1}}
    try:
        await client.post("/completions", asked)
    except RefusedError as error:
        if "cards_probe" not in str(error):
            raise
        return True
    return False


async def probed(client: Client, served: ServedModel, tokenizer: PreTrainedTokenizerBase | None) -> ServedModel:
    """What the server takes and tells, tried out on a few words."""
    refused: RefusedError | None = None
    for top in TOPS:
        for extras in (EXTRAS + LLAMA_CPP, EXTRAS, ()):  # servers may refuse what they do not know
            asked = {"model": served.model, "prompt": PROBE, "max_tokens": 1, "temperature": 1.0} | dict(extras)
            asked |= {"logprobs": top} if top else {}
            try:
                [choice] = (await client.post("/completions", asked))["choices"]
                [cooler] = (await client.post("/completions", asked | {"temperature": 0.1}))["choices"]
            except RefusedError as error:
                if error.status == 404:
                    raise ModelError(
                        f"{error} Completions are needed: a chat endpoint cannot go on from the middle of an answer."
                    ) from error
                if error.status in (401, 403):
                    raise
                refused = error
                continue
            if not extras:
                log.warning("%s takes no top_k: candidates are drawn from all tokens that top_p leaves.", client.address)
            return replace(
                served,
                top=_shown(choice, cooler, top),
                extras=extras,
                ids=tokenizer is not None and _ids_told(choice, tokenizer),
            )
    assert refused is not None
    raise refused


def _shown(warm: dict[str, Any], cool: dict[str, Any], asked: int) -> int:
    """How many log-probabilities come; 0 if they change with the temperature, so that they are not the model's."""
    tops = [tokens[0].top if (tokens := tokens_of(choice)) else () for choice in (warm, cool)]
    if not all(tops) or abs(max(tops[0]) - max(tops[1])) > 0.1:
        return 0
    return min(asked, *map(len, tops))


def _ids_told(choice: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the server tells ids; raises ModelError if they are not those of the tokenizer."""
    tokens = tokens_of(choice)
    if not tokens or tokens[0].id is None:
        return False
    content = (choice.get("logprobs") or {}).get("content") or ()
    names = {other["id"]: other["token"].strip() for entry in content for other in entry.get("top_logprobs") or ()}
    readable = {id_: name for id_, name in names.items() if name and UNFINISHED not in name}
    given = choice.get("prompt_token_ids") or tokenizer(PROBE)["input_ids"]
    if given != tokenizer(PROBE)["input_ids"] or any(str(tokenizer.decode([i])).strip() != readable[i] for i in readable):
        raise ModelError("The tokenizer is not the served model's: the server has other tokens for the same text.")
    return True
