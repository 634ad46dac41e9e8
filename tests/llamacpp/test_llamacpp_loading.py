"""Files and options that cannot be used are refused with the reason, and the interpreter goes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from cards import Decoder
from cards.backends.llamacpp import library as library_module
from cards.backends.llamacpp import plan as plan_module
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


def test_layers_cannot_be_skipped(lm_file: str) -> None:
    with pytest.raises(CardsError, match="cannot skip layers"):
        load_engine(lm_file, skip_layers=0.5)


@pytest.mark.parametrize(
    ("compilers", "amx", "crashes"),
    [
        (["(Debian 12.2.0-14) 12.2.0"], True, True),
        (["(Debian 12.2.0-14) 12.2.0"], False, False),
        (["(GNU) 8.5.0", "(GNU) 14.2.1"], True, False),  # start-up code of an older system
        (["(GNU) 13.3.0"], True, False),
        (["(GNU) 10.2.0"], True, True),
        ([], True, False),  # another compiler
    ],
)
def test_instructions_that_gcc_compiled_wrongly_are_not_used(
    compilers: list[str], amx: bool, crashes: bool, tmp_path: Path
) -> None:
    (tmp_path / "lib").mkdir()
    names = b"".join(f"GCC: {name}\0".encode() for name in compilers)
    (tmp_path / "lib/libggml-cpu.so").write_bytes(b"\x7fELF\0" + names + b".symtab\0")
    info = f"CPU : AVX2 = 1 | AMX_INT8 = {int(amx)} | ".encode()
    module = SimpleNamespace(__file__=str(tmp_path / "__init__.py"), llama_print_system_info=lambda: info)
    assert library_module.amx_crashes.__wrapped__(module) == crashes


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


def test_defaults_of_slots_and_context_follow_the_memory(gguf_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    per_token = 6 * 4 * 128 * 2  # layers, heads, key and value, float16
    for tokens, rows, context in ((2**20, 32, 512), (32 * 512, 8, 512), (5 * 512, 4, 512)):
        monkeypatch.setattr(plan_module, "memory_at_hand", lambda tokens=tokens: tokens * per_token)
        engine = load_engine(str(gguf_folder / "lm-q8_0.gguf"))
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
