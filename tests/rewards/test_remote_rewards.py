"""Reward models with their own Python code score as their own forward pass does on one text, or are refused."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.random_models import reward_model, word_tokenizer
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

import cards
from cards.errors import ModelError, RewardError
from cards.events import Prompt, Response

HEADER = """
from dataclasses import dataclass
import torch
from torch import nn
from transformers import LlamaModel, LlamaPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from transformers.utils import ModelOutput
"""
# As ArmoRM: several objectives, whose weights depend on the hidden state at a marker in the prompt.
GATED = f"""{HEADER}
@dataclass
class CustomOutput(ModelOutput):
    rewards: torch.FloatTensor = None
    gating_output: torch.FloatTensor = None
    score: torch.FloatTensor = None
    logits: torch.FloatTensor = None

class RewardModelWithGating(LlamaPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.regression_layer = nn.Linear(config.hidden_size, config.objectives, bias=False)
        self.gating = nn.Linear(config.hidden_size, config.objectives)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        last = attention_mask.sum(1) - 1 if attention_mask is not None else torch.tensor([-1] * len(input_ids))
        rows = torch.arange(len(input_ids))
        rewards = self.regression_layer(hidden[rows, last])
        marks = [MARK for row in input_ids.tolist()]
        gates = torch.softmax(self.gating(hidden[rows, marks]), -1)
        score = (gates * rewards).sum(-1)
        return CustomOutput(rewards=rewards, gating_output=gates, score=score, logits=LOGITS)
"""
# As the reward models of InternLM2: one head `v_head` over the last hidden state, loaded with AutoModel.
V_HEAD = f"""{HEADER}
class RewardModel(LlamaPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.v_head = nn.Linear(config.hidden_size, 1, bias=False)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, inputs_embeds=None, **kwargs):
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        scores = self.v_head(hidden).squeeze(-1)
        ends = attention_mask.cumsum(1).argmax(1) if attention_mask is not None else [-1] * len(input_ids)
        return SequenceClassifierOutputWithPast(logits=LOGITS)
"""
V_LOGITS = "scores[torch.arange(len(input_ids)), torch.as_tensor(ends)]"
MODELS = {  # the class that loads it, its name, its code, its logits, and the position of the marker
    "gated": ("AutoModelForSequenceClassification", "RewardModelWithGating", GATED, "score.unsqueeze(-1)", "len(row) // 2"),
    "gated, flat": ("AutoModelForSequenceClassification", "RewardModelWithGating", GATED, "score", "0"),
    "gated, marker": ("AutoModelForSequenceClassification", "RewardModelWithGating", GATED, "score", "row.index(7)"),
    "v_head": ("AutoModel", "RewardModel", V_HEAD, f"{V_LOGITS}.unsqueeze(-1)", ""),
    "v_head, flat": ("AutoModel", "RewardModel", V_HEAD, V_LOGITS, ""),
}
AUTO = {"AutoModel": AutoModel, "AutoModelForSequenceClassification": AutoModelForSequenceClassification}


# The second word of a turn names its role, and w7 that of the assistant.
TEMPLATE = (
    "{% for message in messages %}w3 {{ 'w7' if message.role == 'assistant' else 'w8' }} {{ message.content }} {% endfor %}"
)


def save(folder: Path, kind: str, labels: int = 1, template: str | None = None) -> Any:
    """Save a model of this kind with random weights, and return it as transformers loads it."""
    auto, name, code, logits, mark = MODELS[kind]
    config: Any = reward_model("llama", labels=labels).config
    config.objectives = 3
    config.auto_map, config.architectures = {auto: f"own.{name}"}, [name]
    folder.mkdir()
    (folder / "own.py").write_text(code.replace("LOGITS", logits).replace("MARK", mark))
    config.save_pretrained(folder)
    tokenizer = word_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = AUTO[auto].from_config(AutoConfig.from_pretrained(folder), trust_remote_code=True)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    settings = json.loads((folder / "config.json").read_text())
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(settings))
    return AUTO[auto].from_pretrained(folder, trust_remote_code=True).eval()


@pytest.mark.parametrize("kind", ["gated", "gated, flat", "v_head", "v_head, flat"])
def test_trusted_code_scores_as_its_own_forward_pass(tmp_path: Path, kind: str) -> None:
    model = save(tmp_path / "rm", kind)
    with pytest.raises(ModelError, match="needs Python code that comes with the model"):
        cards.load_reward(str(tmp_path / "rm"))
    reward: Any = cards.load_reward(str(tmp_path / "rm"), trust_remote_code=True, slots=2)
    rows = [[2, 7, 3, 9], [7, 5, 5, 6, 8, 10, 11], [4, 7, 12, 9], [2, 3, 7]]
    with torch.inference_mode():
        expected = [model(input_ids=torch.tensor([row])).logits.item() for row in rows]
    assert asyncio.run(reward.read(rows)) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_outputs_that_do_not_fit_the_configuration_are_refused_with_the_reason(tmp_path: Path) -> None:
    save(tmp_path / "rm", "gated, flat", labels=3)
    with pytest.raises(ModelError, match=r"returns outputs of shape \(1,\) for a text, but its configuration has 3 labels"):
        cards.load_reward(str(tmp_path / "rm"), trust_remote_code=True, output=0)


def test_a_model_that_cannot_read_every_text_is_refused_with_the_reason(tmp_path: Path) -> None:
    save(tmp_path / "rm", "gated, marker")
    with pytest.raises(ModelError, match="The forward pass of RewardModelWithGating fails: 7 is not in list"):
        cards.load_reward(str(tmp_path / "rm"), trust_remote_code=True)


def test_a_model_that_looks_for_a_token_of_its_template_scores_dialogues(tmp_path: Path) -> None:
    model = save(tmp_path / "rm", "gated, marker", template=TEMPLATE)
    reward: Any = cards.load_reward(str(tmp_path / "rm"), trust_remote_code=True)
    chat = Prompt("", (), ({"role": "user", "content": "w5 w9 w11"},))
    responses = [Response(text, (0,)) for text in ("w12", "w12 w4 w6", "w10 w7 w2")]
    found = asyncio.run(reward.rate(chat, responses))
    rows = [[3, 8, 5, 9, 11, 3, 7, *(int(word[1:]) for word in response.text.split())] for response in responses]
    with torch.inference_mode():
        expected = [model(input_ids=torch.tensor([row])).logits.item() for row in rows]
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    with pytest.raises(RewardError, match="7 is not in list"):
        asyncio.run(reward.rate(Prompt("w5", ()), [Response("w2", (0,))]))


@pytest.mark.parametrize("template", [TEMPLATE.replace("w7", "w9"), "{{ messages[0].content }}", "{{ raise_exception('no') }}"])
def test_a_model_that_cannot_read_its_template_is_refused(tmp_path: Path, template: str) -> None:
    save(tmp_path / "rm", "gated, marker", template=template)
    with pytest.raises(ModelError, match="The forward pass of RewardModelWithGating fails: 7 is not in list"):
        cards.load_reward(str(tmp_path / "rm"), trust_remote_code=True)
