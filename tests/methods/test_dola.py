"""DoLa contrasts the last layer with the early layer of the largest divergence, in one pass, and only where layers are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.proposals import candidates
from helpers.random_models import Pair, words

from cards import Decoder, Entropy, FixedLength, Response, load_engine
from cards.backends.local.layers import candidate_layers, contrast
from cards.engines.base import Ask
from cards.engines.mixture import MixtureEngine
from cards.errors import MismatchError, SettingError
from cards.methods import CFG, BestOfN, DoLa, Vanilla
from cards.sampling import Sampling
from cards.testing import MockReward, random_engine

pytestmark = pytest.mark.slow
LAYERS = (0, 1)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair.make(request.param, torch.float64)


def by_hand(pair: Pair, ids: Sequence[int], layers: Sequence[int], plausibility: float) -> tuple[Any, int]:
    """The scores of the next token and the layer that was chosen, from a whole pass with all hidden states."""
    with torch.inference_mode():
        out = pair.lm(torch.tensor([list(ids)]), output_hidden_states=True, use_cache=False)
        p = out.logits[0, -1].softmax(-1)
        early = [pair.lm.get_output_embeddings()(out.hidden_states[layer][0, -1]).softmax(-1) for layer in layers]

    def divergence(q: Any) -> float:
        m = (p + q) / 2
        return float((p * (p / m).log() + q * (q / m).log()).sum()) / 2

    found = [divergence(q) for q in early]
    chosen = next(i for i, value in enumerate(found) if value >= max(found) - 1e-4)
    scores = p.log() - early[chosen].log()
    scores[p < plausibility * p.max()] = -math.inf
    return scores, layers[chosen]


async def test_scores_are_those_of_a_whole_pass(pair: Pair) -> None:
    source = pair.engine(slots=4)
    contrasted = source.contrast_layers(LAYERS, 0.3)
    prompt, chosen = source.encode(words([5, 6, 7])), set()
    for n in range(12):
        response = Response(token_ids=tuple((7 * i + n) % 40 + 3 for i in range(n)))
        [row] = await contrasted.logits(prompt, response)
        expected, layer = by_hand(pair, (*prompt.token_ids, *response.token_ids), LAYERS, 0.3)
        chosen.add(layer)
        plausible = expected > -math.inf
        assert row[plausible.numpy()] == pytest.approx(expected[plausible].numpy(), abs=2e-5)
        assert (row[~plausible.numpy()] < -9e3).all()
        assert 0 < plausible.sum() < len(row)
    assert len(chosen) > 1
    assert source.contrast_layers(LAYERS, 0.3) is contrasted
    await source.aclose()


async def test_greedy_tokens_are_those_found_by_hand(pair: Pair) -> None:
    source = pair.engine(slots=4)
    decoder = Decoder(source, None, DoLa(layers=LAYERS, chunk=4))
    prompt = source.encode(words([8, 3, 12]))
    result = await decoder.agenerate(prompt, max_tokens=10)
    ids = list(prompt.token_ids)
    for token in result.token_ids:
        assert token == int(by_hand(pair, ids, LAYERS, 0.1)[0].argmax())
        ids.append(token)
    assert result.usage.lm_prefill_tokens == len(prompt.token_ids)
    assert result.usage.lm_steps == len(result.token_ids)  # one pass for each token
    await decoder.aclose()


async def test_every_method_runs_on_the_contrast(pair: Pair) -> None:
    source = DoLa(layers=LAYERS).over(pair.engine(slots=8))
    for boundary in (FixedLength(maximum=6), Entropy(2, 20, 1.0)):
        ask = Ask(source.encode(words(range(2, 20))), Response(), 24, boundary, Sampling(0.9), 11, n=5)
        together = [s.token_ids for s in await candidates(source, ask)]
        source.forget()
        assert together == [s.token_ids for i in range(5) for s in await candidates(source, replace(ask, first=i, n=1))]
    await source.aclose()


def test_as_an_option_of_the_engine_it_is_the_method() -> None:
    rule = DoLa(temperature=0.7)
    sampling = {name: getattr(rule, name) for name in ("temperature", "top_k", "top_p", "chunk")}
    mixed = load_engine("tiny", mix="dola", slots=4)
    for seed in range(3):
        found = Decoder(mixed, None, Vanilla(**sampling))("Hello", max_tokens=12, seed=seed)
        plain = Decoder("tiny", None, rule)("Hello", max_tokens=12, seed=seed)
        assert found.token_ids == plain.token_ids
    assert Decoder(mixed, "tiny", BestOfN(n=2))("Hello", max_tokens=6).token_ids


def test_rounding_does_not_choose_among_layers_that_share_nothing_with_the_last() -> None:
    final = torch.tensor([[0.0, 1.0, -80.0, -80.0, -80.0, -80.0]])
    early = torch.tensor([[[-90.0, -90.0, 0.0, 1.0, -90.0, -90.0]], [[-90.0, -91.0, -90.0, -90.0, 0.0, 2.0]]])
    both = [contrast(final * (1 + scale), early, 0.1) for scale in (0.0, 1e-7, -1e-7)]
    for scores in both:
        assert scores[0, :2] == pytest.approx((final.log_softmax(-1) - early[0].log_softmax(-1))[0, :2], abs=1e-3)


def test_candidate_layers_are_every_second_of_a_half(pair: Pair) -> None:
    def of(depth: int, layers: Any, tied: bool = False) -> list[int]:
        class Config:
            num_hidden_layers, tie_word_embeddings = depth, tied

            def get_text_config(self) -> Any:
                return self

        class Model(torch.nn.Module):
            config = Config()

            def __init__(self) -> None:
                super().__init__()
                self.layers = torch.nn.ModuleList([torch.nn.Identity() for _ in range(depth)])

        return candidate_layers(Model(), layers)  # type: ignore[arg-type]

    assert of(8, "high") == [4, 6]
    assert of(8, "low") == [0, 2]
    assert of(8, "low", tied=True) == [2]
    assert of(48, "low", tied=True) == list(range(2, 20, 2))
    assert of(48, "high") == list(range(28, 48, 2))
    assert of(8, (7, 0)) == [7, 0]
    with pytest.raises(SettingError, match="none in its low half"):
        of(2, "low", tied=True)
    with pytest.raises(SettingError, match="layers must be numbers from 0 to 7 for this model, got 3, 8"):
        of(8, (3, 8))


def test_engines_without_layers_are_refused_by_name() -> None:
    with pytest.raises(MismatchError, match=r"Method 'dola' needs layers, which engine 'mock' without a reward does not"):
        Decoder(random_engine(), None, DoLa())
    with pytest.raises(MismatchError, match="Load the model in this process with transformers"):
        DoLa().over(random_engine())
    with pytest.raises(MismatchError, match="needs layers"):
        Decoder(MixtureEngine(random_engine(), CFG()), MockReward(), BestOfN(inner=DoLa()))
    with pytest.raises(SettingError, match="layers must be"):
        DoLa(layers=())
