"""Everything that runs no model in this process works without torch and transformers. They cannot be imported here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from helpers.model_server import LM, rewards, running
from transformers import AutoTokenizer

from cards import Decoder
from cards.backends.files import TINY
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.registry import load_engine, load_reward

BLOCK = "import sys; sys.modules |= dict.fromkeys(('torch', 'transformers', 'safetensors'))\n"
CARDS = f"{BLOCK}from cards.cli import main\nsys.exit(main())"
COMMANDS = ("generate", "batch", "serve", "bench", "evaluate", "calibrate", "compare", "diagnose", "methods", "preferences")
DECODE = """
from cards import CARDS, Decoder, FixedLength
from cards.rewards import FunctionReward
from cards.testing.mocks import random_engine

reward = FunctionReward(lambda prompt, response: float(response.count("a")), target=2.0)
result = Decoder(random_engine(), reward, CARDS(boundary=FixedLength(2)))("ab", max_tokens=8, seed=3)
print(result.text, result.usage.rm_calls)
"""


def ran(*arguments: str, code: str = CARDS) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, timeout=120)


def test_a_method_runs_on_an_engine_and_a_reward_that_need_neither() -> None:
    result = ran(code=BLOCK + DECODE)
    text, calls = result.stdout.split()
    assert result.returncode == 0, result.stderr
    assert set(text) <= set("abcd")
    assert int(calls) > 0


@pytest.mark.slow
def test_every_command_explains_itself() -> None:
    code = f"{BLOCK}from cards.cli import main\nfrom contextlib import suppress\nfor name in sys.argv[1:]:\n"
    code += "    with suppress(SystemExit):\n        sys.argv = ['cards', name, '--help']; main()"
    shown = ran(*COMMANDS, code=code)
    assert shown.returncode == 0, shown.stderr
    assert all(f"cards {name}" in shown.stdout for name in COMMANDS)
    assert "cards" in ran("methods").stdout


SERVER = ("--model", "http://127.0.0.1:1/v1")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (("--reward", "length:3-30"), "tiny"),
        (("--model", "org/name", "--method", "vanilla"), "org/name"),
        ((*SERVER, "--reward", "length:3-30+tiny"), "tiny"),
        ((*SERVER, "--reward", "implicit:some,other"), "some"),
    ],
)
def test_a_model_that_needs_torch_names_the_extra_before_any_other_model_is_loaded(options: tuple[str, ...], name: str) -> None:
    result = ran("generate", "Hello", *options)
    assert result.returncode == 2
    assert result.stderr == f"error: Model {name!r} needs torch: pip install 'cards-decoding[local]'.\n"


@pytest.fixture(scope="module")
def tiny() -> TransformersEngine:
    return TransformersEngine.load("tiny")


@pytest.fixture(scope="module")
def address(tiny: TransformersEngine) -> Iterator[str]:
    """A server in the form of vLLM, without the logits processor of this package."""
    with running(LM(tiny, owner="vllm").app()) as address:
        yield f"{address}/v1"


@pytest.mark.slow
def test_a_response_of_a_server_is_that_with_the_tokenizer_of_transformers(address: str, tiny: TransformersEngine) -> None:
    options = ("generate", "Who are you?", "--model", address, "--reward", "length:3-30", "--seed", "1", "--json")
    without = ran(*options)
    assert without.returncode == 0, without.stderr
    found = json.loads(without.stdout)
    engine = load_engine(address, tokenizer=AutoTokenizer.from_pretrained(TINY / "lm"))
    engine.entropy_threshold = tiny.entropy_threshold  # of the configuration, which a tokenizer does not have
    wanted = Decoder(engine, load_reward("length:3-30"))([{"role": "user", "content": "Who are you?"}], seed=1)
    assert (found["text"], found["finish_reason"]) == (wanted.text, wanted.finish_reason)
    assert found["usage"]["rm_calls"] > 0


@pytest.mark.slow
def test_a_server_in_front_of_model_servers_answers_requests(address: str, tiny: TransformersEngine) -> None:
    with running(rewards(ClassifierReward.load("tiny"), tiny)) as scores:
        options = ("--model", address, "--reward", f"{scores}/score", "--target", "-100")
        with served("--port", "0", "--no-playground", *options) as url:
            body = {"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 12}
            reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
    assert reply["choices"][0]["message"]["content"]
    assert reply["usage"]["rm_calls"] > 0


@contextmanager
def served(*arguments: str) -> Iterator[str]:
    """Run a server of this package and yield its address, which it prints when it is ready."""
    command = [sys.executable, "-c", CARDS, "serve", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            logged = (json.loads(line) for line in process.stderr if line.startswith("{"))
            yield next(f"http://127.0.0.1:{entry['port']}" for entry in logged if entry["message"] == "listening")
        finally:
            process.kill()
