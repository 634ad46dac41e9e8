"""lm-evaluation-harness over HTTP: generate_until and multiple choice, with the tokenizer of the server."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import lm_eval
from client_checks import URL, check, direct, same
from lm_eval.tasks import TaskManager

PREFIXES = ("The film", "I love", "My dog")
CHOICES = (" is good.", " zebra quantum.", " and the music was so good.")
TASKS: dict[str, dict[str, Any]] = {
    "cards_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{prefix}}",
        "doc_to_choice": "choices",
        "doc_to_target": "best",
        "metric_list": [{"metric": "acc"}],
    },
    "cards_generate": {
        "output_type": "generate_until",
        "doc_to_text": "{{prefix}}",
        "doc_to_target": "greedy",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 8, "temperature": 0},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def best_choice(prefix: str) -> int:
    """Return the most likely choice, from the log-probabilities of a plain request."""
    scores = []
    for choice in CHOICES:
        found = direct("/v1/completions", {"prompt": prefix + choice, "max_tokens": 0, "echo": True, "logprobs": 1})
        logprobs = found["choices"][0]["logprobs"]
        pairs = zip(logprobs["text_offset"], logprobs["token_logprobs"], strict=True)
        scores.append(sum(value for at, value in pairs if at >= len(prefix)))
    return scores.index(max(scores))


def greedy(prefix: str) -> str:
    body = {"prompt": prefix, "max_tokens": 8, "temperature": 0, "stop": ["."], "seed": 1234}
    return str(direct("/v1/completions", body)["choices"][0]["text"])


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [
            {"prefix": prefix, "choices": CHOICES, "best": best_choice(prefix), "greedy": greedy(prefix)} for prefix in PREFIXES
        ]
        (folder / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for task, about in TASKS.items():
            data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "docs.jsonl")}}}
            (folder / f"{task}.yaml").write_text(json.dumps({"task": task, **data, "test_split": "test", **about}))
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        arguments = {"model": "tiny", "base_url": f"{URL}/v1/completions", "max_length": 512, "num_concurrent": 1}

        def score(task: str, metric: str) -> Any:
            found: Any = lm_eval.simple_evaluate(
                "local-completions", model_args=arguments, tasks=[task], task_manager=manager, bootstrap_iters=0
            )
            return found["results"][task][f"{metric},none"]

        with check("log-probabilities"):
            same(score("cards_choice", "acc"), 1.0)
        with check("completion"):
            same(score("cards_generate", "exact_match"), 1.0)


if __name__ == "__main__":
    main()
