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
    reward.forget()
    padded = await reward.score(prompt, [*texts, repeated(engine, prompt, longest, 3)])
    return await batch_drift(reward, prompt, texts, padded[:-1])


def repeated(engine: Engine, prompt: Prompt, response: Response, times: int) -> Response:
    """Return the response with its text repeated and its original ending."""
    ended = bool(response.token_ids) and response.token_ids[-1] in engine.end_ids
    ids, end = (response.token_ids[:-1], response.token_ids[-1:]) if ended else (response.token_ids, ())
    text = engine.extended(prompt, Response(), ids * times)
    return Response(text.text, (*text.token_ids, *end), response.finish_reason)
