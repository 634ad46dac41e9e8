"""The data sets of the field: where they are, their columns, and what their prompts are for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from cards.errors import MissingExtraError, PromptError

ATTACKS = ("harmful", "unsafe")  # groups of prompts that ask for harm


@dataclass(frozen=True, slots=True)
class DataSet:
    """What `datasets.load_dataset(source, **options)` gives. `columns`: the first that a row has holds the prompt.

    Prompts are of one `group` (`harmful`: they ask for harm; empty: plain questions), or of the one in the column `label`.
    """

    source: str
    options: dict[str, str]
    columns: tuple[str, ...]
    licence: str
    group: str = ""
    label: str = ""
    labels: tuple[str, ...] = field(default=())

    def prompt(self, row: Any) -> Any:
        """The cell that asks. Raises PromptError, naming the columns."""
        if not isinstance(row, Mapping):
            raise PromptError(f"a row must have columns, {self._wanted}, but it is {type(row).__name__}.")
        found = next((row[name] for name in self.columns if row.get(name)), None)
        if found is None:
            raise PromptError(f"a row needs {self._wanted}, and this has {', '.join(map(str, row)) or 'none'}.")
        return found

    def group_of(self, row: Mapping[str, Any]) -> str:
        """Raises PromptError if the label is none of the known ones."""
        if not self.label:
            return self.group
        if row.get(self.label) not in self.labels:
            raise PromptError(f"the column {self.label} must be {' or '.join(self.labels)}, not {row.get(self.label)!r}.")
        return str(row[self.label])

    @property
    def _wanted(self) -> str:
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
    """Return the published rows of a data set. Raises MissingExtraError or PromptError, with the file to give instead."""
    data = DATASETS[name]
    instead = f"Or give a file with {data._wanted} (.jsonl, .jsonl.gz, .json or .csv): {name}=FILE."
    try:
        load_dataset = import_module("datasets").load_dataset
    except ImportError as error:
        raise MissingExtraError(f"The data set {name!r} needs the package datasets", "bench", instead) from error
    try:
        return list(load_dataset(data.source, **data.options))
    except Exception as error:  # of many kinds: no network, no such name, gated, a changed format
        what = f"The data set {name!r} ({data.options.get('data_files', data.source)})"
        why = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise PromptError(f"{what} could not be loaded: {why}. {instead}") from error
