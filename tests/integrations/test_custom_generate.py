"""`generate(custom_generate=...)` gives what a Decoder gives, in generate's own form, and leaves the model as it was."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from helpers.random_models import END, Pair, words
from transformers import GenerationConfig, StoppingCriteriaList, TextIteratorStreamer
from transformers.generation.logits_process import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)
from transformers.generation.stopping_criteria import MaxTimeCriteria, StoppingCriteria

import cards
from cards import CARDS, Decoder, FixedLength
from cards.errors import ModelError, PromptError, SettingError
from cards.integrations.transformers import GenerateOutput, custom_generate
from cards.methods import ARGS, BestOfN, Vanilla

TEXTS = [words([5, 9]), words([12, 3, 40, 7, 8]), words([33])]
METHODS = [
    CARDS(target=1.0, temperature=1.0, entropy_threshold=2.0),
    BestOfN(n=3, temperature=1.0),
    ARGS(temperature=1.0),
    Vanilla(chunk=5),
]
REACH = pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")


@pytest.fixture
def lm(llama_float64: Pair) -> Any:
    return copy.deepcopy(llama_float64.lm)


def padded(pair: Pair, texts: list[str] = TEXTS) -> dict[str, Any]:
    pair.tokenizer.pad_token = "<unk>"
    inputs = pair.tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    return {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "pad_token_id": 0}


def answers(sequences: torch.Tensor, inputs: dict[str, Any]) -> list[list[int]]:
    """What follows the prompts, without padding (the model draws 0 too, so only after an end)."""
    rows = sequences[:, inputs["input_ids"].shape[1] :].tolist()
    return [row[: row.index(END) + 1] if END in row else row for row in rows]


@REACH
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_a_padded_batch_has_the_answers_of_a_decoder(method: Any, lm: Any, llama_float64: Pair) -> None:
    reward = llama_float64.reward()
    expected = Decoder(llama_float64.engine(), reward, method).batch(TEXTS, seed=7, max_tokens=20)
    inputs = padded(llama_float64)
    generate = custom_generate(reward, method, tokenizer=llama_float64.tokenizer)
    got = lm.generate(**inputs, max_new_tokens=20, custom_generate=generate, seed=7, return_dict_in_generate=True)
    assert isinstance(got, GenerateOutput)
    assert got.results is not None
    assert [list(r.token_ids) for r in expected] == answers(got.sequences, inputs)
    assert [r.reward for r in got.results] == pytest.approx([r.reward for r in expected])
    assert [r.text for r in got.results] == [r.text for r in expected]
    assert torch.equal(got.sequences[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_greedy_vanilla_is_generate_itself_which_it_leaves_as_it_was(attention: str, lm: Any, llama_float64: Pair) -> None:
    lm.float().set_attn_implementation(attention)  # eager float64 makes NaN of padding
    lm.model.layers[0].train()
    inputs = padded(llama_float64)
    options: dict[str, Any] = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": [END, 17, 30]}
    before = lm.generate(**inputs, **options)
    weights = copy.deepcopy(lm.state_dict())
    generate = custom_generate(None, "vanilla", tokenizer=llama_float64.tokenizer)
    for _ in range(2):  # the second time with the engine of the first
        assert torch.equal(lm.generate(**inputs, **options, custom_generate=generate), before)
        assert lm.config._attn_implementation == attention
        assert [n for n, m in lm.named_modules() if m.training and n.count(".") == 2] == ["model.layers.0"]
    assert torch.equal(lm.generate(**inputs, **options), before)
    assert all(torch.equal(weights[name], now) for name, now in lm.state_dict().items())


def test_the_engine_stays_with_the_model_until_its_weights_change(lm: Any, llama_float64: Pair) -> None:
    inputs = padded(llama_float64)

    def ours(model: Any) -> torch.Tensor:
        generate = custom_generate(None, "vanilla", tokenizer=llama_float64.tokenizer)
        tokens: torch.Tensor = model.generate(**inputs, max_new_tokens=20, do_sample=False, custom_generate=generate)
        return tokens

    def plain(model: Any) -> torch.Tensor:
        tokens: torch.Tensor = model.generate(**inputs, max_new_tokens=20, do_sample=False)
        return tokens

    first = ours(lm)
    engine = lm._cards_engine.engine
    assert torch.equal(first, ours(lm))
    assert lm._cards_engine.engine is engine
    with torch.no_grad():
        lm.model.layers[1].self_attn.q_proj.weight.mul_(-2.0)
    assert torch.equal(ours(lm), plain(lm))
    assert not torch.equal(ours(lm), first)
    lm.float()
    assert torch.equal(ours(lm), plain(lm))
    twin = copy.deepcopy(lm)
    assert twin._cards_engine.engine is None
    assert torch.equal(ours(twin), plain(lm))
    gone = weakref.ref(twin)
    del twin
    gc.collect()
    assert gone() is None


def test_each_copy_of_a_prompt_has_a_seed_of_its_own(lm: Any, llama_float64: Pair) -> None:
    inputs = padded(llama_float64, TEXTS[:2])
    method = Vanilla(temperature=1.0)
    generate = custom_generate(None, method, tokenizer=llama_float64.tokenizer)
    got = lm.generate(**inputs, max_new_tokens=12, num_return_sequences=2, custom_generate=generate, seed=5)
    expected = Decoder(llama_float64.engine(), None, method).batch(
        [TEXTS[0], TEXTS[0], TEXTS[1], TEXTS[1]], seed=5, max_tokens=12
    )
    assert answers(got, inputs) == [list(r.token_ids) for r in expected]
    assert got[0].tolist() != got[1].tolist()
    with pytest.warns(UserWarning, match="num_beams"):
        beams = lm.generate(
            **inputs,
            max_new_tokens=12,
            custom_generate=generate,
            seed=5,
            generation_config=GenerationConfig(num_beams=4, num_return_sequences=2),
        )
    assert torch.equal(beams, got)


def test_torch_manual_seed_is_the_seed_where_none_is_given(lm: Any, llama_float64: Pair) -> None:
    inputs = padded(llama_float64)
    generate = custom_generate(None, Vanilla(temperature=1.5), tokenizer=llama_float64.tokenizer)
    rows = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        rows.append(lm.generate(**inputs, max_length=20, custom_generate=generate).tolist())
    assert rows[0] == rows[1] != rows[2]
    assert max(map(len, rows[0])) <= 20


@pytest.mark.parametrize("form", ["arguments", "configuration"])
def test_sampling_that_is_given_reaches_the_method(form: str, lm: Any, llama_float64: Pair) -> None:
    inputs = padded(llama_float64)
    given: dict[str, Any] = {"do_sample": True, "temperature": 1.7, "top_k": 7, "top_p": 0.8}
    generate = custom_generate(None, Vanilla(), tokenizer=llama_float64.tokenizer)
    options = given if form == "arguments" else {"generation_config": GenerationConfig(max_new_tokens=20, **given)}
    got = lm.generate(**inputs, max_new_tokens=20, seed=3, custom_generate=generate, **options)
    method = Vanilla(temperature=1.7, top_k=7, top_p=0.8)
    expected = Decoder(llama_float64.engine(), None, method).batch(TEXTS, seed=3, max_tokens=20)
    assert answers(got, inputs) == [list(r.token_ids) for r in expected]
    plain = lm.generate(**inputs, max_new_tokens=20, seed=3, custom_generate=generate)
    assert answers(plain, inputs) != answers(got, inputs)


def test_stop_strings_and_time_end_answers(lm: Any, llama_float64: Pair) -> None:
    inputs = padded(llama_float64, TEXTS[:1])
    generate = custom_generate(None, Vanilla(temperature=1.0, chunk=2), tokenizer=llama_float64.tokenizer)
    options: dict[str, Any] = {"custom_generate": generate, "seed": 2, "return_dict_in_generate": True, "max_new_tokens": 40}
    [whole] = lm.generate(**inputs, **options).results
    assert len(whole.token_ids) > 6
    word = whole.text.split()[4]
    [stopped] = lm.generate(**inputs, **options, stop_strings=[word], tokenizer=llama_float64.tokenizer).results
    assert stopped.text == whole.text[: whole.text.index(word)]
    assert stopped.finish_reason == "stop"
    for limit in ({"max_time": 1e-6}, {"stopping_criteria": StoppingCriteriaList([MaxTimeCriteria(1e-6)])}):
        [late] = lm.generate(**inputs, **options, **limit).results
        assert late.finish_reason == "deadline"


class Never(StoppingCriteria):
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.zeros(len(input_ids), dtype=torch.bool)


@REACH
def test_a_warning_names_what_does_not_apply(lm: Any, llama_float64: Pair) -> None:
    inputs = padded(llama_float64)
    generate = custom_generate(llama_float64.reward(), cards.methods.CBS(temperature=1.0), tokenizer=llama_float64.tokenizer)
    with pytest.warns(UserWarning, match="custom_generate ignores") as caught:
        lm.generate(
            **inputs,
            max_new_tokens=4,
            min_new_tokens=2,
            num_beams=3,
            output_scores=True,
            return_dict_in_generate=True,
            stopping_criteria=StoppingCriteriaList([Never()]),
            logits_processor=LogitsProcessorList([NoRepeatNGramLogitsProcessor(2)]),
            custom_generate=generate,
        )
    [text] = [str(w.message) for w in caught if "custom_generate ignores" in str(w.message)]
    for name in ("MinNewTokensLength", "num_beams", "output_scores", "Never", "NoRepeatNGram"):
        assert name in text
    args = custom_generate(llama_float64.reward(), "args", tokenizer=llama_float64.tokenizer)
    with pytest.warns(UserWarning, match="'args' does not support: top_p"):
        lm.generate(**inputs, max_new_tokens=4, top_p=0.5, custom_generate=args)


def test_repetition_penalties_are_those_of_generate(lm: Any, llama_float64: Pair) -> None:
    inputs = padded(llama_float64, TEXTS[:1])
    plain = custom_generate(None, "vanilla", tokenizer=llama_float64.tokenizer)
    options: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False}
    ways: list[dict[str, Any]] = [
        {"repetition_penalty": 1.4},
        {"logits_processor": LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.4)])},
        {},
    ]
    found = [lm.generate(**inputs, **options, **way, custom_generate=plain).tolist() for way in ways]
    assert found == [lm.generate(**inputs, **options, **way).tolist() for way in ways]
    assert found[0] == found[1] != found[2]


@REACH
def test_a_streamer_gets_the_prompt_and_each_accepted_segment(lm: Any, llama_float64: Pair) -> None:
    inputs = padded(llama_float64, TEXTS[:1])
    streamer = TextIteratorStreamer(llama_float64.tokenizer, skip_prompt=True)
    method = CARDS(target=1.0, temperature=1.0, boundary=FixedLength(maximum=4))
    options: dict[str, Any] = {"max_new_tokens": 16, "seed": 4}
    streaming = custom_generate(llama_float64.reward(), method, tokenizer=llama_float64.tokenizer, streamer=streamer)
    got = lm.generate(**inputs, **options, custom_generate=streaming)
    silent = custom_generate(llama_float64.reward(), method, tokenizer=llama_float64.tokenizer)
    assert torch.equal(got, lm.generate(**inputs, **options, custom_generate=silent))
    parts = list(streamer)
    assert "".join(parts).split() == str(llama_float64.tokenizer.decode(got[0, inputs["input_ids"].shape[1] :])).split()
    assert sum(map(bool, parts)) >= 3
    with pytest.raises(SettingError, match="single response"):
        lm.generate(**padded(llama_float64), **options, custom_generate=streaming)


@REACH
def test_rewards_may_be_functions_or_models(lm: Any, llama_float64: Pair) -> None:
    inputs = padded(llama_float64)
    seen: list[str] = []

    def longest(prompt: str, response: str) -> float:
        seen.append(prompt)
        return float(len(response))

    for reward in (longest, (copy.deepcopy(llama_float64.rm), llama_float64.tokenizer)):
        generate = custom_generate(reward, BestOfN(n=2), tokenizer=llama_float64.tokenizer)
        assert lm.generate(**inputs, max_new_tokens=8, custom_generate=generate).shape[0] == 3
    assert set(seen) == set(TEXTS)


def test_what_cannot_be_decoded_is_refused(lm: Any, llama_float64: Pair) -> None:
    inputs = padded(llama_float64)
    generate = custom_generate(None, "vanilla", tokenizer=llama_float64.tokenizer)
    with pytest.raises(ModelError, match="tokenizer"):
        lm.generate(**inputs, max_new_tokens=4, custom_generate=custom_generate(None, "vanilla"))
    embeds = lm.get_input_embeddings()(inputs["input_ids"])
    with pytest.raises(SettingError, match="inputs_embeds"):
        lm.generate(inputs_embeds=embeds, attention_mask=inputs["attention_mask"], max_new_tokens=4, custom_generate=generate)
    small = custom_generate(None, "vanilla", tokenizer=llama_float64.tokenizer, context=4)
    with pytest.raises(PromptError, match=r"the context of .* is 4"):
        lm.generate(**inputs, max_new_tokens=4, custom_generate=small)


def test_the_embedded_model_brings_its_tokenizer() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from cards.backends.files import TINY

    tokenizer = AutoTokenizer.from_pretrained(TINY / "lm")
    lm = AutoModelForCausalLM.from_pretrained(TINY / "lm", dtype=torch.float32)
    chat = [{"role": "user", "content": "Do you like films?"}]
    inputs: Any = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    generate = custom_generate("tiny", CARDS(target=1.0))
    result = lm.generate(**inputs, max_new_tokens=24, custom_generate=generate, seed=1, return_dict_in_generate=True).results[0]
    expected = Decoder("tiny", "tiny", CARDS(target=1.0))(chat, seed=1, max_tokens=24)  # type: ignore[arg-type]
    assert (result.text, result.token_ids) == (expected.text, expected.token_ids)
    assert result.reward == pytest.approx(expected.reward)
