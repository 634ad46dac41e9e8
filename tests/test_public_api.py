"""The public names: adding one is a decision, and removing one breaks programs (see the stability promise in docs)."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import pytest

PUBLIC = {
    "cards": """
        Accepted Ask Boundary CARDS CardsError Decoder Done Engine Entropy Event Fallback FixedLength Grammar Message Method
        Prompt Proposed Punctuation Rejected Request Response Result Reward Scored Segment Shaping Step Usage Whole
        load_engine load_reward setting
    """,
    "cards.methods": """
        ARGS AdaBoN AdaSearch AdaptiveConsistency AlignmentAwareDecoding BestOfN BestOfPoisson Blockwise BudgetForcing
        CARDS CBS CDSL CFG Cascade ContextAwareDecoding ContrastiveDecoding ContrastiveDecodingLogits ControlledDecoding
        DVTS DeAL DeepConf DoLa FUDGE GSI GenARM IAD MBR MBRBestOfN MOD OptimalStopping PRMBeamSearch ParticleFiltering
        ParticleGibbs PathConsistency Pessimism PowerSampling ProxyTuning QAlign QERerank RAD RAIN RBoNKL ROSE RSD
        RejectionSampling SIA SMC SSS STARS SafeDecoding SelfCertainty SelfConsistency SoftBestOfN SpecReason
        SpeculativeRejection TransferQ TreeBoN Vanilla
    """,
    "cards.rewards": """
        AfterThinking ConfidenceReward
        FunctionReward GradeReward GuardReward ImplicitReward JSONReward KeywordReward LengthReward Minimum Pessimistic
        ProcessReward RegexReward SelfEvaluation StepTokenReward ValueReward WeightedSum
    """,
}


@pytest.mark.parametrize("module", PUBLIC)
def test_the_public_names_are_these(module: str) -> None:
    found = {name for name, value in vars(import_module(module)).items() if not isinstance(value, ModuleType)}
    assert {name for name in found if not name.startswith("_")} == set(PUBLIC[module].split())
