"""Texts of the model cards; the figures come from report.json."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    what: str
    use: str
    data: str
    training: str
    limits: str


DATA = (
    "Licences and credits: `../NOTICE.md`. No share-alike data was used. The only official test files among the data are "
    "those of HH-RLHF."
)
FORM = (
    "Text format: `\\n\\nHuman: ...\\n\\nAssistant: ...<|endoftext|>`, as written by the tokenizer's chat template; at "
    "most 512 tokens. Weights are stored in float16. `training/README.md` describes how to train the model again."
)
LIMITS = (
    "English only. A model of this size knows no facts and follows no instructions. Its purpose is to run the whole "
    "decoding method on a CPU within seconds, offline. Its data contains its authors' views and prejudices. Do not use it "
    "where a wrong, rude or unsafe response could harm somebody."
)

TEXTS = {
    "tokenizer": Text(
        what="Byte-level BPE with 4096 tokens, shared by all embedded models. Decoding restores any UTF-8 text exactly.",
        use="Encoding text for the models in the neighbouring folders.",
        data="The language model's training text (Self-dialogue, MultiWOZ, Taskmaster-4, FairytaleQA tales).",
        training=(
            "No token crosses a blank line or joins two digits. End-of-text is `<|endoftext|>`, which is never added "
            "automatically; padding is `<|pad|>`."
        ),
        limits="Made for English; other scripts need about one token per byte.",
    ),
    "lm": Text(
        what="`LlamaForCausalLM`, 6.2 million parameters: 6 layers, width 256, 4 heads, tied embeddings.",
        use="The base model of examples, tests and benchmarks: small talk on films, music and sport.",
        data=(
            "Self-dialogue corpus, MultiWOZ, Taskmaster-4 dialogues (train files) and, in each epoch, a third of the "
            "FairytaleQA tales."
        ),
        training=(
            "From random weights, with Muon for the hidden matrices and AdamW for the rest, a trapezoid schedule, and 8192 "
            "tokens per step. Three in ten dialogues begin one turn later (the speakers are symmetric). The loss covers "
            "both speakers."
        ),
        limits="It forgets what was said a few turns ago, invents names, and may repeat itself.",
    ),
    "draft": Text(
        what="`LlamaForCausalLM`, 1.7 million parameters: 5 layers, width 128, 4 heads, tied embeddings.",
        use="Proposing tokens for `lm` in speculative decoding; a cheap replacement for it in tests.",
        data="The same as for `lm`.",
        training=(
            "From random weights on the same text; seven tenths of the loss is the cross-entropy to the distribution of `lm`."
        ),
        limits="Worse than `lm` in everything but speed.",
    ),
    "aligned": Text(
        what="`lm`, tuned towards `rm`. Same shape and tokenizer.",
        use="Implicit rewards log p_aligned - log p_lm, and a tuned model to compare decoding methods with.",
        data=(
            "Responses of `lm` to first turns of training dialogues and of DiaSafety's train rows, scored by `rm`. `rm` was "
            "trained on HH-RLHF pairs, among others; this model was not trained on their text."
        ),
        training=(
            "One round of DPO (beta 0.1) on the best and the worst of 5 finished responses per prompt, then the mean of the "
            "tuned weights and those of `lm`."
        ),
        limits="It has higher rewards from `rm`. It is not more capable, and has no safety guarantees.",
    ),
    "rm": Text(
        what=(
            "`LlamaForSequenceClassification` with one score, 6.2 million parameters: backbone and tokenizer of `lm`. "
            "Higher means kinder, safer, more positive. It is causal, so it can score incomplete responses."
        ),
        use="The reward model of examples, tests and benchmarks. Choose a target reward by the quantiles below.",
        data=(
            "By hash, 75% of the train rows of GoEmotions polarity, 78% of DiaSafety's, and 65% of the counterfactual "
            "IMDB pairs and of HH-RLHF's test files. `gold` has the remaining rows."
        ),
        training=(
            "Started from `lm`. Logistic losses on rated texts (the goal for neutral comments is one half) and "
            "Bradley-Terry losses on pairs; each source has its own slope and offset over the one score. Texts are "
            "responses to generic or borrowed turns, or have no prompt. The loss is applied at the end-of-text, at the last "
            "token before it, and with less weight at every earlier position. Everyday chat was regularized towards zero, "
            "and the head was then scaled so that rewards of responses of `lm` have a standard deviation of 1.5."
        ),
        limits=(
            "It follows words more than meaning: praise for something harmful may get a high reward, and a polite refusal a "
            "lower one. Its HH-RLHF accuracy is hardly above chance."
        ),
    ),
    "gold": Text(
        what=(
            "`ModernBertForSequenceClassification` with one score, 1.5 million parameters: a bidirectional encoder of "
            "3 layers and width 160 with mean pooling and the shared tokenizer."
        ),
        use="Evaluation only: a score of responses that did not select them. Never use it to steer or to tune.",
        data="The 22% to 35% of each source's rows that `rm` was not trained on, and ETHICS (utilitarianism) pairs.",
        training=(
            "Word embeddings were initialized with the principal directions of those of `lm`; all other weights are random "
            "at first. Losses as for `rm`, but on whole texts, a quarter of them truncated at a random position. DiaSafety's "
            "few rows occur three times per epoch. Scaled so that rewards of responses of `lm` have mean 0 and standard "
            "deviation 1.5."
        ),
        limits="Its data comes from the same sources as that of `rm`, so it shares some of its errors.",
    ),
}
