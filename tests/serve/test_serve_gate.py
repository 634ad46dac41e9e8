"""So many run, so many wait, all others hear when to come again; a deadline takes what there is."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from helpers.mock_models import CARDS_IN_THREES, mock
from helpers.running_server import Running, Switch, assert_free, serving, until

from cards.serve.errors import ApiError
from cards.serve.gate import Gate

pytestmark = pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")


async def test_first_come_first_served() -> None:
    gate, order = Gate(2, 8), list[int]()

    async def one(number: int, count: int) -> None:
        await gate.enter(count)
        order.append(number)

    await gate.enter(2)
    tasks = [asyncio.create_task(one(i, count)) for i, count in enumerate((1, 2, 1))]
    await asyncio.sleep(0)
    gate.leave()
    await asyncio.sleep(0)
    assert order == [0]
    gate.leave()
    await asyncio.sleep(0)
    assert order == [0]  # who needs two places is not passed by who needs one
    gate.leave()
    await asyncio.sleep(0)
    assert order == [0, 1]
    gate.leave(2)
    await asyncio.gather(*tasks)
    assert (order, gate.running) == ([0, 1, 2], 1)


async def test_who_leaves_the_queue_makes_room() -> None:
    gate = Gate(2, 2)
    await gate.enter(1)
    wide, narrow = (asyncio.create_task(gate.enter(count)) for count in (2, 1))
    await asyncio.sleep(0)
    with pytest.raises(ApiError) as caught:
        await gate.enter(1)
    assert caught.value.status_code == 429
    wide.cancel()
    await narrow
    assert (gate.running, len(gate.waiting)) == (2, 0)


async def test_who_is_let_in_and_called_away_at_once_leaves_his_place() -> None:
    gate = Gate(1, 1)
    await gate.enter(1)
    task = asyncio.create_task(gate.enter(1))
    await asyncio.sleep(0)
    gate.leave()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert gate.idle


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("idle", [0.0, 4000.0])
async def test_the_time_to_retry_follows_the_time_of_responses_and_not_idle_time(
    monkeypatch: pytest.MonkeyPatch, idle: float
) -> None:
    clock = Clock()
    monkeypatch.setattr("cards.serve.gate.time.monotonic", clock)
    gate = Gate(2, 9)
    assert gate.retry_after == 1
    for _ in range(10):  # responses of three seconds, two at a time
        await gate.enter(2)
        clock.now += 3
        gate.leave()
        gate.leave()
        clock.now += idle
    await gate.enter(2)
    tasks = [asyncio.create_task(gate.enter(1)) for _ in range(4)]
    await asyncio.sleep(0)
    assert gate.retry_after == 6  # the four that wait, two at a time
    clock.now += 4000  # much slower than before
    assert gate.retry_after == 60
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_beyond_the_queue_there_is_429_and_the_others_are_answered(mocked: Running, reward: Switch) -> None:
    reward.held = True
    gate, client = mocked.service.gate, mocked.client()

    def ask(_: int) -> str | None:
        return client.completions.create(model="mock", prompt="abc", max_tokens=3).choices[0].finish_reason

    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(ask, i) for i in range(3)]
        until(lambda: gate.running == 2 and len(gate.waiting) == 1)
        assert mocked.get("/ready").json() == {"status": "queue full"}
        assert mocked.metric("cards_queue_depth") == 1
        assert mocked.metric("cards_running_answers") == 2
        with pytest.raises(openai.RateLimitError) as caught:
            ask(0)
        assert caught.value.code == "queue_full"
        assert int(caught.value.response.headers["Retry-After"]) >= 1
        reward.held = False
        assert [answer.result() for answer in answers] == ["length"] * 3
    assert mocked.get("/ready").status_code == 200
    assert_free(mocked)


def test_a_deadline_returns_the_text_so_far_and_says_so() -> None:
    reward = Switch()
    reward.held = True
    with serving(mock(), reward, CARDS_IN_THREES) as running:
        body = {"prompt": "abc", "max_tokens": 30, "seed": 1}
        [choice] = running.post(json={**body, "cards": {"deadline": 0.2}}).json()["choices"]
        assert (choice["text"], choice["finish_reason"], choice["cards"]["finish"]) == ("", "length", "deadline")
        reward.held = False
        whole = running.post(json=body).json()["choices"][0]["text"]
        reward.good = reward.asked + 4
        assert_free(running)

        async def hang(prompt: object, responses: object) -> list[float]:
            reward.held = reward.asked >= reward.good
            return await Switch.rate(reward, prompt, responses)  # type: ignore[arg-type]

        reward.rate = hang  # type: ignore[method-assign]
        [choice] = running.post(json={**body, "cards": {"deadline": 0.5}}).json()["choices"]
        assert choice["cards"]["finish"] == "deadline"
        assert choice["text"]
        assert whole.startswith(choice["text"])
        assert whole != choice["text"]
        until(lambda: running.metric("cards_requests_total", method="cards", outcome="deadline") == 2)
        assert_free(running)


def test_the_servers_deadline_bounds_the_clients() -> None:
    reward = Switch()
    reward.held = True
    with serving(mock(), reward, CARDS_IN_THREES, deadline=0.2) as running:
        [choice] = running.post(json={"prompt": "abc", "cards": {"deadline": 1000}}).json()["choices"]
        assert choice["cards"]["finish"] == "deadline"


def test_a_deadline_that_passes_in_the_queue_is_a_429(mocked: Running, reward: Switch) -> None:
    reward.held = True
    sockets = [mocked.send({"prompt": "abc"}) for _ in range(2)]
    until(lambda: mocked.service.gate.running == 2)
    answer = mocked.post(json={"prompt": "abc", "cards": {"deadline": 0.1}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "deadline")
    labels = {"method": "cards", "outcome": "busy"}
    until(lambda: mocked.metric("cards_queue_seconds_count", **labels) == 1)
    assert mocked.metric("cards_queue_seconds_sum", **labels) > 0  # the time that it waited
    assert mocked.metric("cards_request_seconds_count", method="cards", outcome="ok") == 0
    for opened in sockets:
        opened.close()
    assert_free(mocked)
