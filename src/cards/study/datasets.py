"""The public data sets that benches use: source, columns, licence and group of prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from cards.errors import MissingExtraError, PromptError

ATTACKS = ("harmful", "unsafe")  # groups of prompts that request harmful content


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set that `datasets.load_dataset(source, **options)` loads.

    columns: the first of them that a row has holds the prompt.
    group: `harmful` if the prompts request harmful content, empty for ordinary prompts.
    label: the column that holds the group of each row, one of `labels`; it replaces `group`.
    """

    source: str
    options: dict[str, str]
    columns: tuple[str, ...]
    licence: str
    group: str = ""
    label: str = ""
    labels: tuple[str, ...] = field(default=())

    def prompt(self, row: Any) -> Any:
        """Return the cell that holds the prompt. Raises PromptError if there is none."""
        if not isinstance(row, Mapping):
            raise PromptError(f"a row must be an object with {self._required}, got {type(row).__name__}.")
        cell = next((row[name] for name in self.columns if row.get(name)), None)
        if cell is None:
            raise PromptError(f"a row needs {self._required}, got {', '.join(map(str, row)) or 'no columns'}.")
        return cell

    def group_of(self, row: Mapping[str, Any]) -> str:
        """Return the group of a row. Raises PromptError if its label is not one of `labels`."""
        if not self.label:
            return self.group
        if row.get(self.label) not in self.labels:
            raise PromptError(f"the column {self.label} must be {' or '.join(self.labels)}, got {row.get(self.label)!r}.")
        return str(row[self.label])

    @property
    def _required(self) -> str:
        return f"the column {' or '.join(self.columns)}" + (f", and {self.label}" if self.label else "")


DATASETS = {
    "hh-rlhf": DataSet("Anthropic/hh-rlhf", {"split": "test"}, ("chosen", "prompt"), "MIT"),
    "ultrafeedback": DataSet("HuggingFaceH4/ultrafeedback_binarized", {"split": "test_prefs"}, ("prompt",), "MIT"),
    "helpsteer": DataSet("nvidia/HelpSteer", {"split": "validation"}, ("prompt",), "CC-BY-4.0"),
    "alpaca-eval": DataSet(
        "json",
        {"data_files": "hf://datasets/tatsu-lab/alpaca_eval/alpaca_eval.json", "split": "train"},
        ("instruction",),
        "CC-BY-NC-4.0",
    ),
    "advbench": DataSet(
        "csv",
        {
            "data_files": "https://raw.githubusercontent.com/llm-attacks/llm-attacks/main/data/advbench/harmful_behaviors.csv",
            "split": "train",
        },
        ("goal", "prompt"),
        "MIT",
        "harmful",
    ),
    "saferlhf": DataSet("PKU-Alignment/PKU-SafeRLHF", {"split": "test"}, ("prompt",), "CC-BY-NC-4.0", "harmful"),
    "beavertails": DataSet("PKU-Alignment/BeaverTails", {"split": "30k_test"}, ("prompt",), "CC-BY-NC-4.0", "harmful"),
    "xstest": DataSet("Paul/XSTest", {"split": "train"}, ("prompt",), "CC-BY-4.0", label="label", labels=("safe", "unsafe")),
}


def load(name: str) -> list[Any]:
    """Return the published rows of a data set. Raises MissingExtraError, or PromptError if it cannot be loaded."""
    data = DATASETS[name]
    alternative = f"Or give a file with {data._required} (.jsonl, .json, .csv, also .gz, or .parquet): {name}=FILE."
    try:
        load_dataset = import_module("datasets").load_dataset
    except ImportError as error:
        raise MissingExtraError(f"The data set {name!r} needs the package datasets", "bench", alternative) from error
    try:
        return list(load_dataset(data.source, **data.options))
    except Exception as error:  # many types: no network, unknown name, gated access, changed format
        source = data.options.get("data_files", data.source)
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise PromptError(f"The data set {name!r} ({source}) could not be loaded: {reason}. {alternative}") from error
