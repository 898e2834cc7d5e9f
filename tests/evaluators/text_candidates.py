"""A small job on a made-up text, and cells for it, equal on every rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import candidates

from nord_hpc.builder.cell_trees import LSTM
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.job import Job

TEXT = "".join(f"{n} bottles on the wall, take {n % 7} down and pass {n % 5} around.\n" for n in range(40, 0, -1))


def make_text_job(folder: Path, **sections: Any) -> Job:
    """Writes the text into `folder`, and the job on it."""
    file = folder / "text.txt"
    if not file.exists():
        file.write_text(TEXT)
    changes: dict[str, Any] = {
        "dataset": {"name": "text", "path": str(file), "bptt": 8, "fraction": 1.0, "evaluation_streams": 4},
        "space": {"name": "recurrent_cell", "width": 8},
        "evaluator": {"digests": True, "head": {}},
        "training": {"batch_size": 16, "validation_batch_size": 1, "clip_norm": 1.0},
        "objective": {"metric": "bits_per_character", "direction": "minimize"},
    }
    for section, values in sections.items():
        changes[section] = {**changes.get(section, {}), **values}
    return candidates.make_job(**changes)


def cells(*, layers: int = 2, width: int = 8, dropout: float = 0.1) -> NeuralDescriptor:
    made = NeuralDescriptor()
    made.add_layer("Embedding", {"embedding_dim": width})
    for _ in range(layers):
        made.add_layer_sequential("RecurrentCell", {"hidden_size": width, "cell": LSTM.to_json()})
        made.add_layer_sequential("Dropout", {"p": dropout})
    return made
