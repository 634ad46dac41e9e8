"""Stability of scores: changes caused by the batch, by padding and by repetition."""

from __future__ import annotations

from collections.abc import Sequence

from cards.engines.base import Engine
from cards.events import Prompt, Response
from cards.rewards.base import Reward


async def batch_drift(reward: Reward, prompt: Prompt, texts: Sequence[Response], scores: Sequence[float]) -> float:
    """Return the largest change of a score if each text is scored alone, with empty caches."""
    alone = []
    for text in texts:
        reward.forget()
        alone += await reward.score(prompt, [text])
    return max(abs(a - b) for a, b in zip(alone, scores, strict=True))


async def padding_drift(engine: Engine, reward: Reward, prompt: Prompt, texts: Sequence[Response]) -> float:
    """Return the largest change of a score if the batch contains a much longer text, which requires padding."""
    longest = max(texts, key=lambda text: len(text.token_ids))
    long = repeated(engine, prompt, longest, 3)
    reward.forget()
    padded = await reward.score(prompt, [*texts, long])
    drift = 0.0
    for text, score in zip(texts, padded, strict=False):
        reward.forget()
        drift = max(drift, abs(score - (await reward.score(prompt, [text]))[0]))
    return drift


def repeated(engine: Engine, prompt: Prompt, response: Response, times: int) -> Response:
    """Return the response with its text repeated and its original ending."""
    ids = (
        response.token_ids[:-1] if response.token_ids[-1:] and response.token_ids[-1] in engine.end_ids else response.token_ids
    )
    end = response.token_ids[len(ids) :]
    text = engine.extended(prompt, Response(), ids * times)
    return Response(text.text, (*text.token_ids, *end), response.finish_reason)
