"""Add the head of a reward model to the GGUF file of its layers, as metadata that llama.cpp keeps and CARDS reads.

llama.cpp converts and loads classification heads of few architectures. For any other decoder, convert the layers alone and add
the head (docs/llamacpp.md). The head stays in float32, also if the file is quantised later. Needs torch, transformers and gguf.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata
from transformers import AutoModelForSequenceClassification

from cards.errors import ModelError


def add_head(layers: Path, folder: str, output: Path) -> None:
    """Write the file `layers` and the head of the reward model in `folder` to a new file. Raises ModelError without a head."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    score = getattr(model, "score", None)
    if score is None:
        raise ModelError(f"{folder!r} has no linear head over its last token, as decoders have.")
    reader = gguf.GGUFReader(layers)
    architecture = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
    numbers = {"cards.score.weight": score.weight} | ({"cards.score.bias": score.bias} if score.bias is not None else {})
    arrays = {name: values.detach().float().flatten().tolist() for name, values in numbers.items()}
    labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
    arrays[gguf.Keys.Classifier.OUTPUT_LABELS.format(arch=architecture)] = labels
    metadata = {name: MetadataDetails(gguf.GGUFValueType.ARRAY, values) for name, values in arrays.items()}
    if (target := getattr(model.config, "cards_target", None)) is not None:
        metadata["cards.target"] = MetadataDetails(gguf.GGUFValueType.FLOAT32, target)
    copy_with_new_metadata(reader, gguf.GGUFWriter(output, architecture), metadata, [])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layers", type=Path, help="GGUF file of the layers of the reward model")
    parser.add_argument("folder", help="folder or Hugging Face name of the reward model")
    parser.add_argument("output", type=Path, help="GGUF file to write")
    given = parser.parse_args()
    add_head(given.layers, given.folder, given.output)
