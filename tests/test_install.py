"""The package alone is small and runs without torch: it is installed into an empty environment, as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.gguf_files import write_gguf
from helpers.model_server import LM, running

from cards.backends.local.engine import TransformersEngine

ROOT = Path(__file__).parents[1]
LIMIT = 150e6  # bytes beside pip
PIP = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence")
QUESTION = ("generate", "Who are you?", "--reward", "length:3-30", "--seed", "1", "--max-tokens", "24")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


class Environment:
    """A virtual environment with pip."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        run(sys.executable, "-m", "venv", str(folder))

    def install(self, *packages: str) -> None:
        run(str(self.folder / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages)

    def cards(self, *arguments: str) -> str:
        return run(str(self.folder / "bin" / "cards"), *arguments)

    @property
    def packages(self) -> Path:
        [found] = self.folder.glob("lib/python3*/site-packages")
        return found

    @property
    def size(self) -> int:
        """Bytes of all packages but pip."""
        parts = [part for part in self.packages.iterdir() if not part.name.startswith(PIP)]
        return sum(f.stat().st_size for part in parts for f in (part, *part.rglob("*")) if f.is_file())


def run(*command: str) -> str:
    """Run a command with no other packages than those of its environment, and return its output."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=ROOT.parent, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    made = Environment(tmp_path_factory.mktemp("install") / "env")
    made.install(str(ROOT))
    return made


def test_the_package_and_all_that_it_needs_are_small(environment: Environment) -> None:
    assert environment.size < LIMIT
    assert not any((environment.packages / name).exists() for name in ("torch", "transformers", "tokenizers", "cards/tiny"))


def test_a_model_on_a_server_needs_nothing_else(environment: Environment) -> None:
    with running(LM(TransformersEngine.load("tiny")).app()) as address:
        assert environment.cards(*QUESTION, "--model", f"{address}/v1").strip()


def test_the_embedded_models_are_found_where_their_package_puts_them(environment: Environment) -> None:
    """With the extra http, whose tokenizers need no torch."""
    environment.install("--no-deps", str(ROOT / "packages" / "tiny"))
    environment.install(f"{ROOT}[http]")
    assert (environment.packages / "cards" / "tiny" / "lm" / "model.safetensors").exists()
    with running(LM(TransformersEngine.load("tiny"), owner="vllm").app()) as address:
        assert environment.cards(*QUESTION, "--model", f"{address}/v1").strip()


def test_a_gguf_file_needs_only_llama_cpp(environment: Environment, tmp_path: Path) -> None:
    """pip compiles llama.cpp if it has no wheel in its cache, which is left to `make llamacpp`."""
    cached = "llama_cpp" in run(sys.executable, "-m", "pip", "cache", "list", "llama_cpp_python")
    if not (cached or os.environ.get("PIP_FIND_LINKS")):
        (pytest.fail if os.environ.get("CARDS_ALL_TESTS") else pytest.skip)("pip has no wheel of llama-cpp-python.")
    environment.install(f"{ROOT}[llamacpp]")
    assert environment.cards(*QUESTION, "--model", str(write_gguf("lm", tmp_path / "x.gguf"))).strip()
    assert not any((environment.packages / name).exists() for name in ("torch", "transformers"))
