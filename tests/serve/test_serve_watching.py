"""Metrics that match the books, logs without prompts, ids, spans."""

from __future__ import annotations

import json
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr
from typing import Any, cast

import pytest
from helpers.mock_models import CARDS_IN_THREES, mock
from helpers.running_server import Running, Switch, serving, until
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from cards.serve.logs import JSONFormatter, LineFormatter, LineLogger, RateLimit
from cards.serve.server import address
from cards.serve.tracing import Tracing, provider_of

pytestmark = pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
BODY = {"prompt": "abcabc", "max_tokens": 9, "seed": 1}
SECRET = "abcabc"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[dict[str, Any]]]:
    """Log lines of the requests, as JSON."""
    told: list[dict[str, Any]] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() != "listening":
                told.append(json.loads(JSONFormatter().format(record)))

    log, handler = logging.getLogger("cards.serve"), Kept()
    log.addHandler(handler)
    caplog.set_level(logging.INFO, "cards.serve")
    yield told
    log.removeHandler(handler)


def test_metrics_are_the_sum_of_the_books(mocked: Running) -> None:
    answers = [mocked.post(json={**BODY, "seed": seed}).json() for seed in range(3)]
    mocked.post(json={"prompt": "abc", "n": 0})
    until(lambda: mocked.metric("cards_requests_total", method="none", outcome="refused") == 1)
    families = {family.name: family for family in text_string_to_metric_families(mocked.get("/metrics").text)}
    found = {(s.name, s.labels.get("method")): s.value for family in families.values() for s in family.samples}
    assert {s.labels["outcome"] for s in families["cards_request_seconds"].samples} == {"ok"}
    for name in ("accepted", "rejected", "fallbacks", "rm_calls", "rm_seconds", "lm_decoded_tokens", "lm_wasted_tokens"):
        total = sum(answer["usage"][name] for answer in answers)
        assert found[f"cards_{name}_total", "cards"] == pytest.approx(total)
    assert found["cards_answer_tokens_total", "cards"] == 27
    assert found["cards_request_seconds_count", "cards"] == 3
    assert found["cards_first_text_seconds_count", "cards"] == 3
    assert found["cards_queue_seconds_count", "cards"] == 3
    assert found["cards_output_token_seconds_count", "cards"] == 3
    assert found["cards_output_token_seconds_sum", "cards"] == pytest.approx(sum(a["usage"]["seconds"] / 9 for a in answers))
    assert found["process_resident_memory_bytes", None] > 0
    assert found["cards_rows", None] == 32
    assert (found["cards_queue_depth", None], found["cards_rows_in_use", None]) == (0, 0)


def test_apps_count_apart(mocked: Running) -> None:
    mocked.post(json=BODY)
    with serving(mock(), Switch(), CARDS_IN_THREES) as other:
        assert other.metric("cards_requests_total", method="cards", outcome="ok") == 0


def test_a_line_for_each_request_without_its_prompt(mocked: Running, reward: Switch, lines: list[dict[str, Any]]) -> None:
    answer = mocked.post(json=BODY, headers={"X-Request-ID": "mine-1"})
    reward.broken = True
    mocked.post(json=BODY)
    mocked.post(json={"prompt": SECRET, "sead": 1})
    mocked.get("/health")
    until(lambda: len(lines) == 3)
    first, second, third = lines
    assert first["id"] == answer.headers["X-Request-ID"] == "mine-1"
    assert answer.json()["id"] == "cmpl-mine-1"
    assert (first["request"], first["status"], first["outcome"]) == ("POST /v1/completions", 200, "ok")
    assert first["usage"] == {k: v for k, v in answer.json()["usage"].items() if k in first["usage"]}
    assert (second["status"], second["outcome"], second["error"]) == (503, "unavailable", "reward_failed")
    assert (third["status"], third["outcome"], third["error"]) == (400, "refused", "unknown_field")
    assert SECRET not in json.dumps(lines)


def test_prompts_are_logged_on_demand(lines: list[dict[str, Any]]) -> None:
    with serving(mock(), Switch(), CARDS_IN_THREES, log_prompts=True) as running:
        running.post(json={**BODY, "n": 2})
        until(lambda: lines)
    assert lines[0]["prompts"] == [SECRET]


@pytest.mark.parametrize("given", ["has space", "x" * 200, 'a"b'])
def test_a_request_id_that_is_none_is_replaced(mocked: Running, given: str) -> None:
    told = mocked.post(json=BODY, headers={"X-Request-ID": given}).headers["X-Request-ID"]
    assert told != given
    assert len(told) == 32


def test_a_crash_is_a_500_without_details_and_in_the_log(
    mocked: Running, lines: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any) -> None:
        raise ZeroDivisionError("a detail")

    monkeypatch.setattr(mocked.service, "validate", crash)
    answer = mocked.post(json=BODY)
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "a detail" not in answer.text
    until(lambda: len(lines) == 2)
    assert "ZeroDivisionError: a detail" in lines[0]["traceback"]
    assert lines[1]["outcome"] == "failed"


def test_a_span_for_each_answer_with_its_books_under_the_clients(reward: Switch) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    parent = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    with serving(mock(), reward, CARDS_IN_THREES, tracing=Tracing(provider)) as running:
        answer = running.post(json={**BODY, "n": 2}, headers=parent).json()
        reward.broken = True
        running.post(json=BODY)
    *good, bad = cast(Any, exporter.get_finished_spans())
    assert [span.name for span in (*good, bad)] == ["cards.answer"] * 3
    assert {f"{span.context.trace_id:032x}" for span in good} == {"0af7651916cd43dd8448eb211c80319c"}
    for name in ("rm_calls", "lm_seconds", "rm_seconds"):
        assert sum(span.attributes[f"cards.{name}"] for span in good) == pytest.approx(answer["usage"][name])
    assert bad.attributes["error.type"] == "RewardError"
    assert not bad.status.is_ok
    assert SECRET not in "".join(span.to_json() for span in (*good, bad))


def test_abandoned_requests_are_not_latencies_of_successful_ones(mocked: Running, reward: Switch) -> None:
    reward.held = True
    opened = mocked.send(BODY)
    until(lambda: reward.asked)
    opened.close()
    until(lambda: mocked.metric("cards_request_seconds_count", method="cards", outcome="left") == 1)
    assert mocked.metric("cards_request_seconds_count", method="cards", outcome="ok") == 0


def test_lines_of_other_packages_are_limited_per_place_and_counted() -> None:
    limit, log = RateLimit(burst=3, seconds=10), logging.getLogger("other")

    def record(line: int, name: str = "other") -> logging.LogRecord:
        return log.makeRecord(name, logging.WARNING, "file.py", line, "failed %s", ("x",), None)

    assert [limit.filter(record(1)) for _ in range(5)] == [True] * 3 + [False] * 2
    assert limit.filter(record(2))
    assert all(limit.filter(record(3, "cards.serve")) for _ in range(99))
    limit.seconds = 0  # the interval is over
    told = record(1)
    assert limit.filter(told)
    assert json.loads(JSONFormatter().format(told))["suppressed"] == 2


def test_what_other_packages_print_becomes_lines_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with redirect_stderr(LineLogger()):
        print("half of", end="", file=sys.stderr)
        print(" a line", file=sys.stderr)
    assert [(record.name, record.getMessage()) for record in caplog.records] == [("stderr", "half of a line")]


def test_logs_and_warnings_of_packages_with_their_own_handlers_are_json() -> None:
    code = """if True:
        import logging, warnings
        from cards.serve.logs import configure
        other = logging.getLogger("other.part")
        other.addHandler(logging.StreamHandler())
        other.propagate = False
        configure()
        other.warning("logged")
        warnings.warn("warned")
    """
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    messages = [json.loads(text)["message"] for text in ran.stderr.splitlines()]
    assert [message.split(": ")[-1].split("\n")[0] for message in messages] == ["logged", "warned"]


def test_lines_for_people_have_an_address_to_click_and_the_outcome_of_requests() -> None:
    def shown(message: str, level: int = logging.INFO, **fields: Any) -> str:
        record = logging.LogRecord("cards.serve", level, "", 1, message, (), None)
        record.fields = fields
        return LineFormatter().format(record).partition(" ")[2]

    assert shown("listening", url=address("0.0.0.0", 8000)) == "listening at http://127.0.0.1:8000/ (Ctrl-C stops the server)"
    assert address("::1", 80) == "http://[::1]:80/"
    request: dict[str, Any] = {
        "id": "1",
        "request": "POST /v1/completions",
        "status": 200,
        "outcome": "ok",
        "method": "cards",
        "queued": 0.1,
    }
    line = shown("request", **request, answer_tokens=9, usage={}, seconds=1.234)
    assert line == "POST /v1/completions 200, cards, 9 tokens, 1.23 s"
    line = shown("request", **request | {"status": 400, "outcome": "refused", "error": "invalid"}, seconds=0.001)
    assert line == "POST /v1/completions 400, refused, cards, invalid, 0.00 s"
    assert shown("no key\x1b[2J", logging.WARNING, host="h") == "warning: no key [2J host=h"


def test_a_terminal_gets_lines_for_people() -> None:
    code = "import logging; from cards.serve.logs import configure; configure(); logging.getLogger('cards').info('ready')"
    end, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", code], stderr=theirs, check=True)
    os.close(theirs)
    assert os.read(end, 1000).decode().strip().endswith(" ready")
    os.close(end)


@pytest.mark.parametrize("name", ["console", "otlp"])
def test_exporters_can_be_had(name: Any) -> None:
    provider = provider_of(name)
    provider.shutdown()
