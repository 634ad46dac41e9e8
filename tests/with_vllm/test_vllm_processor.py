"""The logits processor, in both of vLLM's interfaces: draws and boundaries are those of `sampling` and `boundaries`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.v1.sample import logits_processor as v1
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality
from vllm.v1.worker.gpu.sample import logits_processor as v2

from cards.backends.local.sampling import draw, uncertainty
from cards.backends.vllm import processor
from cards.backends.vllm.options import DRAWN, INVALID, REFUSED, DrawSpec, check_drawn, request_options, shaping_options
from cards.backends.vllm.processor import Processor
from cards.boundaries import Entropy
from cards.engines.ask import Ask
from cards.engines.mock import MockEngine
from cards.errors import MismatchError, SettingError
from cards.events import Prompt, Response
from cards.grammar import Grammar
from cards.sampling import Sampling, distribution, pick, uniforms
from cards.shaping import Shaping

VOCABULARY, STOP = 50, 7
SAMPLINGS = [Sampling(), Sampling(0.7, 10), Sampling(1.3, None, 0.8), Sampling(0.0), Sampling(0.5, 5, 0.9)]
BOUNDARIES = [Entropy(2, None, 3.0), Entropy(1, None, 0.7, "mcp"), Entropy(1, None, 0.6, "evidential")]


def params(options: dict[str, Any] | None, candidate: int | None = 0, **more: Any) -> SamplingParams:
    return SamplingParams(temperature=0.0, seed=candidate, max_tokens=20, stop_token_ids=[STOP], extra_args=options, **more)


def rule_of(row: int) -> tuple[Ask, int]:
    """Requests that differ in all that matters, and the numbers of their candidates."""
    boundary = BOUNDARIES[row % 3]
    prompt = Prompt("", (1, 2, 3))
    return Ask(prompt, Response(), 20, boundary, SAMPLINGS[row % 5], seed=2**63 + row, segment=row % 4), row % 6


def logits_of(rows: int, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(rows, VOCABULARY, generator=generator) * torch.rand(rows, 1, generator=generator) * 4


def expected(ask: Ask, candidate: int, logits: Tensor, drawn: int) -> tuple[int, float]:
    """Token and value that must be left of the logits."""
    if drawn >= ask.boundary.minimum:
        unsure = uncertainty(ask.boundary, logits[None]).item()
        if ask.boundary.ends_before(unsure):
            return STOP, unsure
    u = torch.tensor([uniforms(ask.seed, ask.segment, candidate, drawn + 1)[-1]])
    return int(draw(logits[None], ask.sampling, u)), -1.0


def left(row: Tensor) -> tuple[int, float]:
    [token] = row.isfinite().nonzero()[:, 0].tolist()
    return token, row[token].item()


class Batch:
    """Rows in vLLM's V1 batch: what each row is, and the tokens it has."""

    def __init__(self) -> None:
        self.processor = Processor(None, torch.device("cpu"), False)
        self.rows: list[tuple[Ask, int] | None] = []
        self.outputs: list[list[int]] = []
        self.boundaries = self.draws = 0

    def add(self, *requests: tuple[Ask, int] | None) -> None:
        added = []
        for request in requests:
            options = None if request is None else request_options(request[0], STOP)
            self.rows.append(request)
            self.outputs.append([])
            given = params(options, None if request is None else request[1])
            added.append((len(self.rows) - 1, given, [1, 2, 3], self.outputs[-1]))
        self.processor.update_state(BatchUpdate(len(self.rows), [], added, []))

    def step(self, number: int) -> None:
        """One step of all rows, each of which must come out as it would alone."""
        logits = logits_of(len(self.rows), number)
        got = self.processor.apply(logits.clone())
        for row, request in enumerate(self.rows):
            if request is None:
                assert torch.equal(got[row], logits[row])
                continue
            token, value = expected(*request, logits[row], len(self.outputs[row]))
            assert left(got[row]) == pytest.approx((token, value), abs=1e-6)
            self.boundaries += value >= 0
            self.draws += value < 0
            self.outputs[row].append(token)


def test_draws_and_boundaries_are_those_of_the_package() -> None:
    batch = Batch()
    batch.add(*(rule_of(row) for row in range(15)))
    for step in range(12):
        batch.step(step)
    assert batch.boundaries > 20
    assert batch.draws > 50


def test_invalid_logits_are_marked_and_others_are_not() -> None:
    batch = Batch()
    batch.add(*(rule_of(row) for row in range(15)))
    logits = logits_of(15, 0)
    clean = batch.processor.apply(logits.clone())
    for bad, row in ((torch.nan, 3), (torch.inf, 8), (-torch.inf, slice(4, 6))):
        logits[row, :] = bad
    got = batch.processor.apply(logits.clone())
    invalid = [3, 4, 5, 8]
    assert [left(got[row])[1] for row in invalid] == [INVALID] * 4
    valid = [row for row in range(15) if row not in invalid]
    assert torch.equal(got[valid], clean[valid])


def test_other_requests_are_left_alone() -> None:
    batch = Batch()
    batch.add(rule_of(0), None, rule_of(1), None)
    for step in range(5):
        batch.step(step)
    alone = Batch()
    alone.add(None, None)
    logits = logits_of(2, 0)
    assert alone.processor.apply(logits) is logits
    assert not alone.processor.rows


def test_rows_keep_their_own_draws_when_they_move() -> None:
    batch = Batch()
    batch.add(rule_of(0), None, rule_of(1), rule_of(2), rule_of(3))
    batch.step(0)
    batch.rows[1], batch.rows[4] = batch.rows[4], batch.rows[1]
    batch.outputs[1], batch.outputs[4] = batch.outputs[4], batch.outputs[1]
    batch.rows[0], batch.rows[2] = batch.rows[2], batch.rows[0]
    batch.outputs[0], batch.outputs[2] = batch.outputs[2], batch.outputs[0]
    swap = MoveDirectionality.SWAP
    batch.processor.update_state(BatchUpdate(5, [], [], [(1, 4, swap), (0, 2, swap)]))
    batch.step(1)
    batch.rows[0], batch.outputs[0] = batch.rows[3], batch.outputs[3]  # row 0 ends, and row 3 takes its place
    del batch.rows[3:], batch.outputs[3:]
    batch.processor.update_state(BatchUpdate(3, [4, 0], [], [(3, 0, MoveDirectionality.UNIDIRECTIONAL)]))
    batch.step(2)
    assert set(batch.processor.rows) == {0, 1, 2}
    batch.rows[1], batch.outputs[1] = None, []
    batch.processor.update_state(BatchUpdate(3, [], [(1, params(None, None), [1], batch.outputs[1])], []))
    batch.step(3)


def test_a_request_that_was_interrupted_goes_on_where_it_was() -> None:
    batch = Batch()
    batch.add(rule_of(3))
    for step in range(4):
        batch.step(step)
    ask, candidate = rule_of(3)
    batch.processor.update_state(BatchUpdate(0, [0], [], []))
    batch.processor.update_state(
        BatchUpdate(1, [], [(0, params(request_options(ask, STOP), candidate), [1], batch.outputs[0])], [])
    )
    batch.step(4)


def test_the_other_interface_gives_the_same() -> None:
    """Rows in any order over recycled slots; one still reads its prompt, one has no options."""
    prompts = np.array([3, 5, 4, 3, 9])
    states = SimpleNamespace(prompt_len=SimpleNamespace(np=prompts))
    processor = Processor(None, states)
    assert processor.add_request(1, params(request_options(rule_of(5)[0], STOP), 5))
    assert not processor.add_request(1, params(None, None))
    for slot in (0, 2, 3, 4):
        ask, candidate = rule_of(slot)
        assert processor.add_request(slot, params(request_options(ask, STOP), candidate))
    for step in range(8):
        slots = np.roll(np.arange(5), step)
        drawn = {0: step, 1: step, 2: step + 2, 3: step + 1, 4: -3}
        logits = logits_of(5, step)
        lengths = np.array([prompts[slot] + drawn[slot] for slot in slots.tolist()])
        got = processor.apply(logits.clone(), SimpleNamespace(idx_mapping_np=slots, seq_lens_upper_bound_np=lengths))
        for row, slot in enumerate(slots.tolist()):
            if slot in (1, 4):
                assert torch.equal(got[row], logits[row])
            else:
                token, value = expected(*rule_of(slot), logits[row], drawn[slot])
                assert left(got[row]) == pytest.approx((token, value), abs=1e-6)


def test_rows_of_drafted_tokens_are_drawn_each_for_its_place() -> None:
    """With a draft the other interface gives a request as many rows as it has drafted tokens, and one more."""
    prompts, drafted, drawn = [3, 5, 4], [2, 0, 3], [4, 0, 7]
    processor = Processor(None, SimpleNamespace(prompt_len=SimpleNamespace(np=np.array(prompts))))
    for slot in range(3):
        ask, candidate = rule_of(slot)
        processor.add_request(slot, params(request_options(ask, STOP), candidate))
    places = [(slot, drawn[slot] + i) for slot in (2, 0, 1) for i in range(drafted[slot] + 1)]
    ctx = SimpleNamespace(
        idx_mapping_np=np.array([2, 0, 1]),
        seq_lens_upper_bound_np=np.array([0, 0, 0]),
        expanded_idx_mapping=torch.tensor([slot for slot, _ in places]),
        pos=torch.tensor([prompts[slot] + n - 1 for slot, n in places]),
    )
    logits = logits_of(len(places), 1)
    got = processor.apply(logits.clone(), ctx)
    for row, (slot, number) in enumerate(places):
        token, value = expected(*rule_of(slot), logits[row], number)
        assert left(got[row]) == pytest.approx((token, value), abs=1e-6)


def test_candidates_of_one_request_are_told_apart_by_the_seed_that_vllm_raises() -> None:
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.parallel_sampling import ParentRequest

    options = request_options(rule_of(0)[0], STOP)
    many = SamplingParams(n=3, temperature=1.0, seed=4, max_tokens=20, extra_args=options)
    request = EngineCoreRequest("r", [1], None, many, None, 0.0, None, None, None, external_req_id="r")
    parent = ParentRequest(request)
    rules = [DrawSpec.parse(parent.get_child_info(i)[1]) for i in range(3)]
    assert [rule.stream[2] for rule in rules if rule] == [4, 5, 6]


GOOD = request_options(rule_of(0)[0], STOP)
BAD: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "unknown": (GOOD | {"cards_treshold": 1.0}, {}),
    "no seed": ({k: v for k, v in GOOD.items() if k != "cards_seed"}, {}),
    "seed": (GOOD | {"cards_seed": -1}, {}),
    "large seed": (GOOD | {"cards_seed": 2**64}, {}),
    "large segment": (GOOD | {"cards_segment": 2**40}, {}),
    "text": (GOOD | {"cards_segment": "2"}, {}),
    "list": (GOOD | {"cards_top_p": [0.5]}, {}),
    "temperature": (GOOD | {"cards_temperature": -0.1}, {}),
    "top_p": (GOOD | {"cards_top_p": 0.0}, {}),
    "threshold": (GOOD | {"cards_threshold": -1.0}, {}),
    "measure": (GOOD | {"cards_measure": "energy"}, {}),
    "minimum": (GOOD | {"cards_minimum": 0}, {}),
    "no stop": ({k: v for k, v in GOOD.items() if k != "cards_stop"}, {}),
    "candidate": (GOOD, {"candidate": None}),
    "large candidate": (GOOD, {"candidate": 2**40}),
    "penalty": (GOOD, {"presence_penalty": 0.5}),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_refused_before_they_reach_the_engine(case: str) -> None:
    options, more = BAD[case]
    with pytest.raises(VLLMValidationError):
        v1.validate_logits_processors_parameters(None, params(options, **more))


def test_vllms_own_temperature_is_refused() -> None:
    with pytest.raises(VLLMValidationError, match="cards_temperature"):
        v1.validate_logits_processors_parameters(None, SamplingParams(temperature=0.7, seed=0, extra_args=GOOD))


def test_good_options_pass_and_mean_what_they_say() -> None:
    for row in range(15):
        ask, candidate = rule_of(row)
        given = params(request_options(ask, STOP), candidate)
        v1.validate_logits_processors_parameters(None, given)
        rule = DrawSpec.parse(given)
        assert rule is not None
        assert (rule.sampling, rule.boundary, rule.stop) == (ask.sampling, ask.boundary, STOP)
        assert rule.stream == (ask.seed, ask.segment, candidate)
        assert [rule.uniform(i) for i in (0, 70, 3, 500)] == uniforms(*rule.stream, 501)[[0, 70, 3, 500]].tolist()


def test_a_boundary_of_ones_own_is_refused() -> None:
    class Odd(Entropy):
        pass

    with pytest.raises(MismatchError, match="does not support the boundary Odd"):
        request_options(Ask(Prompt("", (1,)), Response(), 5, Odd()), STOP)


def test_vllm_finds_the_processor_by_itself() -> None:
    """For both model runners, of which the second refuses what only serves the first."""
    assert Processor in v1._load_logitsprocs_plugins()
    assert Processor in v2.loader._load_v2_logitsprocs_plugins()
    validate = v2.build_custom_logits_processors_params_validator(None)
    validate(params(GOOD))
    with pytest.raises(VLLMValidationError):
        validate(params(GOOD | {"cards_minimum": 0}))


# Shaping.

LETTERS = "abcdefghij"
CONFIG = SimpleNamespace(model_config=None)
SHAPED = Shaping(Grammar.regex("(ab|c)*(de)?"), ((2, 1.5), (9, -9.0)), 0.5, 0.25, 1.4)


class ShapedRow:
    """A request with a shaping, whose response so far is part of the prompt of vLLM, in the V1 batch or another."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, shaping: Shaping) -> None:
        self.source = MockEngine(lambda ids: [0.1] * 10, LETTERS, end="j")
        monkeypatch.setattr(processor, "tokenizer_of", lambda config: self.source)
        self.prompt, response = (7, 0), Response("abc", (0, 1, 2))
        self.ask = Ask(Prompt("", self.prompt), response, 20, sampling=Sampling(0.9), shaping=shaping)
        self.options = request_options(self.ask, 9) | shaping_options(self.ask, self.source)
        self.before = [*self.prompt, *response.token_ids]

    def expected(self, row: Tensor, drawn: list[int]) -> tuple[int, float]:
        writer = self.source.writer(self.ask)
        writer.tokens += drawn
        u = uniforms(0, 0, 0, len(drawn) + 1)[-1]
        return pick(distribution(writer.shaped(row.numpy()), self.ask.sampling), u), DRAWN


def test_shaped_tokens_count_the_response_in_the_prompt_in_both_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    one = ShapedRow(monkeypatch, SHAPED)
    v1, output = Processor(CONFIG, torch.device("cpu"), False), list[int]()
    v1.update_state(BatchUpdate(1, [], [(0, params(one.options), one.before, output)], []))
    history = torch.zeros(3, 40, dtype=torch.int32)
    states = SimpleNamespace(prompt_len=SimpleNamespace(np=np.array([0, 0, 5])), all_token_ids=SimpleNamespace(gpu=history))
    v2 = Processor(CONFIG, states)
    v2.add_request(2, params(one.options))
    for step in range(8):
        logits = logits_of(1, step)[:, :10]
        wanted = one.expected(logits[0], output)
        assert left(v1.apply(logits.clone())[0]) == pytest.approx(wanted)
        history[2, : 5 + step] = torch.tensor([*one.before, *output])
        ctx = SimpleNamespace(
            idx_mapping_np=np.array([2]),
            seq_lens_upper_bound_np=np.array([5 + step]),
            expanded_idx_mapping=torch.tensor([2]),
            input_ids=torch.tensor([0]),
        )
        assert left(v2.apply(logits.clone(), ctx)[0]) == pytest.approx(wanted)
        if wanted[0] == 9:
            break
        output.append(wanted[0])
    assert step > 2


def test_shaped_rows_of_drafted_tokens_read_them_from_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    one = ShapedRow(monkeypatch, SHAPED)
    history = torch.zeros(1, 40, dtype=torch.int32)
    drafted = [0, 1]
    history[0, :6] = torch.tensor([*one.before, 2])
    states = SimpleNamespace(prompt_len=SimpleNamespace(np=np.array([5])), all_token_ids=SimpleNamespace(gpu=history))
    v2 = Processor(CONFIG, states)
    v2.add_request(0, params(one.options))
    ctx = SimpleNamespace(
        idx_mapping_np=np.array([0]),
        seq_lens_upper_bound_np=np.array([8]),
        expanded_idx_mapping=torch.tensor([0, 0, 0]),
        expanded_local_pos=torch.tensor([0, 1, 2]),
        input_ids=torch.tensor([2, *drafted]),
        pos=torch.tensor([5, 6, 7]),
    )
    logits = logits_of(3, 1)[:, :10]
    got = v2.apply(logits.clone(), ctx)
    for row in range(3):
        assert left(got[row]) == pytest.approx(one.expected(logits[row], [2, *drafted[:row]]))


def test_a_grammar_that_allows_no_token_is_marked_and_ends_no_other_request(monkeypatch: pytest.MonkeyPatch) -> None:
    one = ShapedRow(monkeypatch, Shaping(Grammar.regex("abcx")))  # no token of this vocabulary has an x
    v1 = Processor(CONFIG, torch.device("cpu"), False)
    other = params(request_options(rule_of(0)[0], STOP), 0)
    v1.update_state(BatchUpdate(2, [], [(0, params(one.options), one.before, []), (1, other, [1, 2, 3], [])], []))
    logits = logits_of(2, 0)[:, :10]
    got = v1.apply(logits.clone())
    assert left(got[0])[1] == REFUSED
    assert left(got[1]) == pytest.approx(expected(*rule_of(0), logits[1], 0), abs=1e-6)
    with pytest.raises(SettingError, match="allows no token"):
        check_drawn(REFUSED, 0)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"grammar": 3}', '{"grammar": "start: x"}', '{"bias": [[1]]}', '{"oops": 1}', "1"]
)
def test_wrong_shapings_are_refused(text: str) -> None:
    with pytest.raises((SettingError, VLLMValidationError)):
        Processor.validate_params(params(GOOD | {"cards_shaping": text}))
