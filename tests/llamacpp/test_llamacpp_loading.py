"""Files and options that cannot be used are refused with the reason, and the interpreter goes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cards import Decoder
from cards.backends.llamacpp import engine as engine_module
from cards.backends.llamacpp import library as library_module
from cards.backends.llamacpp import model as model_module
from cards.backends.llamacpp.engine import LlamaEngine
from cards.errors import CardsError, MismatchError, ModelError, PromptTooLongError, RewardError, SettingError, UnknownNameError
from cards.events import Prompt, Response
from cards.methods import CARDS, Vanilla
from cards.placement import Placement
from cards.registry import load_engine, load_reward
from cards.rewards import FunctionReward

ARCHITECTURE = b"\x05\x00\x00\x00\x00\x00\x00\x00llama"  # the value in the metadata
DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "is not a GGUF file"),
    "other": (lambda data: b"PK" + data[2:], "is not a GGUF file"),
    "pointer": (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
    "short": (lambda data: data[: len(data) // 2], "not within the file bounds|failed to read|data"),
    "header": (lambda data: data[:20000], "damaged GGUF file"),
    "architecture": (lambda data: data.replace(ARCHITECTURE, ARCHITECTURE[:-1] + b"x", 1), "unknown model architecture"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_with_the_reason(damage: str, lm_file: str, tmp_path: Path) -> None:
    change, reason = DAMAGES[damage]
    path = tmp_path / "model.gguf"
    path.write_bytes(change(Path(lm_file).read_bytes()))
    with pytest.raises(ModelError, match=reason):
        load_engine(str(path))


def test_a_missing_file_is_named_with_those_beside_it(lm_file: str) -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean '.*lm\.gguf'"):
        load_engine(lm_file.replace("lm.gguf", "ln.gguf"))


def test_a_missing_part_of_a_split_file_is_named(lm_file: str, tmp_path: Path) -> None:
    part = tmp_path / "m-00001-of-00003.gguf"
    part.write_bytes(Path(lm_file).read_bytes())
    with pytest.raises(ModelError, match=r"lacks 2 of 3 parts: m-00002-of-00003\.gguf"):
        load_engine(str(part))


def test_without_the_library_the_error_says_how_to_install_it(lm_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    library_module.library.cache_clear()
    try:
        with pytest.raises(SettingError, match=r"cards-decoding\[llamacpp\].*compiles.*cmake.*wheels"):
            load_engine(lm_file)
    finally:
        library_module.library.cache_clear()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 4096}, "context must be between 2 and 512"),
        ({"slots": 300}, "slots must be at most 256"),
        ({"slots": 32, "n_batch": 8}, "n_batch must be at least the number of slots"),
        ({"slots": 2, "n_ctx": 512, "context": 100}, "context is 100, but n_ctx"),
        ({"slots": 2, "n_seq_max": 3}, "slots is 2, but n_seq_max is 3"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"device": "cuda:1"}, "'cuda:1' cannot be used"),
        ({"dtype": "float8"}, "Unknown dtype 'float8'"),
        ({"flash_attn": "maybe"}, "flash_attn must be yes or no"),
        ({"n_ubatch": -1}, "n_ubatch must be at least 0"),
        ({"n_batch": "x"}, "n_batch must be a whole number"),
        ({"type_k": "q9"}, "Unknown value of type_k: 'q9'"),
        ({"type_v": "q8_0", "flash_attn": False}, "requires flash_attn"),
        ({"n_cxt": 5}, r"Did you mean 'n_ctx'"),
        ({"lora": "missing.gguf"}, "LoRA adapter must be a GGUF file"),
        ({"skip_layers": 0.5}, "cannot skip layers"),
    ],
)
def test_an_option_out_of_range_is_refused(options: dict[str, Any], message: str, lm_file: str) -> None:
    with pytest.raises(CardsError, match=message):
        load_engine(lm_file, **options)


def test_a_file_that_is_no_adapter_is_refused_as_one(lm_file: str) -> None:
    with pytest.raises(ModelError, match=r"expect general\.type to be 'adapter'"):
        load_engine(lm_file, lora=lm_file)


def test_options_have_the_names_of_llama_cpp_in_python_and_as_text(lm_file: str) -> None:
    given = ("n_ctx=384", "n_seq_max=3", "rope_freq_scale=0.5", "use_mmap=no", "type_k=f32")
    for engine in (
        load_engine(lm_file, n_ctx=384, n_seq_max=3, rope_freq_scale=0.5, use_mmap=False, type_k="f32"),
        Placement(llama=given).load_engine(lm_file),
    ):
        assert isinstance(engine, LlamaEngine)
        assert (engine.rows, engine.context) == (3, 128)
    assert load_engine("tiny", llama={"n_ctx": "384"}).name == "tiny"  # they are only for GGUF files
    with pytest.raises(SettingError, match="NAME=VALUE"):
        Placement(llama=("n_ctx",))


def test_a_model_or_a_cache_that_does_not_fit_into_memory_is_refused(lm_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, message in ((model_module, "of memory are free"), (engine_module, r"32 slots of 512 tokens need 0\.1 GB")):
        with monkeypatch.context() as patch:
            patch.setattr(module, "memory_at_hand", lambda: 2**20)
            with pytest.raises(CardsError, match=message):
                load_engine(lm_file, slots=32)


def test_defaults_of_slots_and_context_follow_the_memory(lm_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    per_token = 6 * 4 * 128 * 2  # layers, heads, key and value, float16
    for tokens, rows, context in ((2**20, 32, 512), (32 * 512, 8, 512), (5 * 512, 4, 512)):
        monkeypatch.setattr(engine_module, "memory_at_hand", lambda tokens=tokens: tokens * per_token)
        engine = load_engine(lm_file)
        assert (engine.rows, engine.context) == (rows, context)


async def test_a_text_that_exceeds_the_context_is_refused_and_the_others_go_on(engine: LlamaEngine) -> None:
    with pytest.raises(PromptTooLongError):
        engine.encode("a b c d " * 200)
    prompt = engine.encode("Once upon a time")
    long = Prompt("", (5,) * 600, None, engine.vocabulary)
    with pytest.raises(PromptTooLongError):
        await engine.logits(long, Response())
    assert (await engine.logits(prompt, Response())).shape == (1, 4096)


async def test_an_id_beyond_the_vocabulary_is_refused(engine: LlamaEngine) -> None:
    with pytest.raises(CardsError, match="token id 4096"):
        await engine.logits(Prompt("", (1, 4096), None, engine.vocabulary), Response())


async def test_a_reward_that_raises_ends_its_request_and_leaves_no_sequence_taken(engine: LlamaEngine) -> None:
    def broken(prompt: str, response: str) -> float:
        raise ZeroDivisionError

    with pytest.raises(RewardError):
        await Decoder(engine, FunctionReward(broken, target=1.0), CARDS()).agenerate("Once upon a time", max_tokens=8)
    await engine.settle()
    assert engine.scheduler.slots.idle.all()
    assert (await Decoder(engine, None, Vanilla()).agenerate("Once upon a time", max_tokens=8)).text


async def test_a_closed_model_refuses_requests(lm_file: str) -> None:
    engine = LlamaEngine.load(lm_file, slots=2, threads=1)
    prompt = engine.encode("Once upon a time")
    await engine.aclose()
    await engine.aclose()
    with pytest.raises(ModelError, match="closed"):
        await engine.logits(prompt, Response())


def test_a_draft_with_another_vocabulary_is_refused(lm_file: str, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    data = Path(lm_file).read_bytes()
    name = b"\x06\x00\x00\x00\x00\x00\x00\x00\xc4\xa0film"
    assert name in data
    other.write_bytes(data.replace(name, name[:-1] + b"n", 1))
    with pytest.raises(MismatchError, match="do not share a tokenizer"):
        load_engine(lm_file, draft=str(other))


def test_nothing_imports_torch_or_transformers(lm_file: str) -> None:
    code = (
        "import sys; sys.modules |= dict.fromkeys(('torch', 'transformers', 'tokenizers', 'safetensors'))\n"
        "from cards.cli import main; sys.exit(main())"
    )
    arguments = ["generate", "What is it?", "--model", lm_file, "--reward", "length:3-30", "--max-tokens", "12"]
    ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()


def test_a_model_of_the_embedded_reward_reads_the_ids_of_the_file(lm_file: str) -> None:
    engine, reward = load_engine(lm_file), load_reward("tiny")
    assert engine.vocabulary == getattr(reward, "vocabulary", None)
