"""Training on a text: streams, carried states, clipping and scoring against loops written by hand."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from example import CPU, Free, summary
from torch import nn

from nord_hpc.builder import plan
from nord_hpc.builder.cell_trees import LSTM
from nord_hpc.builder.network import build
from nord_hpc.data_parallel.single import SingleGang
from nord_hpc.datasets.sequences import training_windows, windows
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.job import TrainingSettings
from nord_hpc.training.batches import plan_batches, stream_order
from nord_hpc.training.carried import CarriedStates
from nord_hpc.training.data import Part, StreamedPart, scored_part
from nord_hpc.training.metrics import metrics_of
from nord_hpc.training.scoring import score
from nord_hpc.training.trainer import TrainingData, TrainingResult, autocast_of, train
from nord_hpc.trial import Fidelity

WINDOW, STREAMS, TOKENS = 5, 3, 7


@dataclass(frozen=True)
class Info:
    task: str = "language_modelling"
    n_outputs: int = TOKENS
    storage: str = "host"
    normalized: bool = True
    evaluation_streams: int = STREAMS

    def normalize(self, x: Any) -> Any:
        return x


@dataclass(frozen=True)
class Split:
    x: Any
    y: Any


def text(n: int, *, seed: int) -> Any:
    """Tokens of which each is most often the sum of the two before."""
    rng = np.random.default_rng(seed)
    tokens = list(rng.integers(0, TOKENS, 2))
    while len(tokens) < n:
        tokens.append((tokens[-1] + tokens[-2]) % TOKENS if rng.random() < 0.9 else rng.integers(TOKENS))
    return np.array(tokens, dtype=np.int32)


def data(n_train: int = 331, n_validation: int = 98) -> TrainingData:
    info = Info()
    return TrainingData(
        info,
        train=Part(Split(*training_windows(text(n_train, seed=1), WINDOW, fraction=1.0)), info, device=CPU),
        validation=scored_part(Split(*windows(text(n_validation, seed=2), WINDOW)), info, device=CPU),
    )


def network(*, dropout: float = 0.0, layers: int = 1) -> nn.Module:
    made = NeuralDescriptor()
    made.add_layer("Embedding", {"embedding_dim": 6})
    for _ in range(layers):
        made.add_layer_sequential("RecurrentCell", {"hidden_size": 6, "cell": LSTM.to_json()})
    if dropout:
        made.add_layer_sequential("Dropout", {"p": dropout})
    head = {"features": "positions"}
    return build(plan(made, input_shape=(TOKENS, WINDOW), n_outputs=TOKENS, head=head), seed=4)


def run(
    net: nn.Module,
    training_data: TrainingData,
    *,
    epochs: int = 2,
    fraction: float = 1.0,
    shards: int = 1,
    lr: float = 0.5,
    clip_norm: float | None = None,
    checkpoint: Path | None = None,
) -> TrainingResult:
    return train(
        net,
        training_data,
        settings=TrainingSettings(batch_size=8, clip_norm=clip_norm, optimizer={"name": "sgd", "lr": lr}),  # type: ignore[arg-type]
        fidelity=Fidelity(epochs=epochs, fraction=fraction),
        shards=shards,
        seed=7,
        reduction="exact",
        precision="fp32",
        data_parallel=SingleGang(),
        control=Free(),
        digests=True,
        checkpoint=checkpoint,
    )


def test_each_place_of_a_batch_reads_on() -> None:
    plan_ = plan_batches(n_train=67, fraction=1.0, batch_size=8, shards=2)
    starts = set()
    for epoch in range(1, 30):
        order_TB = stream_order(plan_, seed=1, epoch=epoch).reshape(plan_.steps, plan_.batch)
        assert (np.diff(order_TB, axis=0) == 1).all() and (np.diff(order_TB, axis=1) == plan_.steps).all()
        starts.add(int(order_TB[0, 0]))
    assert starts == {0, 1, 2, 3}  # 67 - 8 x 8 windows are left out, before or behind
    half = plan_batches(n_train=67, fraction=0.5, batch_size=8, shards=2)
    assert stream_order(half, seed=1, epoch=1).max() < 33


@pytest.mark.parametrize("clip_norm", [None, 0.1])
@pytest.mark.parametrize("shards", [1, 2, 4])
def test_training_is_truncated_back_propagation_through_time(clip_norm: float | None, shards: int) -> None:
    """Against torch alone, with the states handed on by hand."""
    training_data, net = data(), network(layers=2)
    by_hand = copy.deepcopy(net)
    tokens, epochs = text(331, seed=1), 2
    result = run(net, training_data, epochs=epochs, shards=shards, clip_norm=clip_norm)
    assert result.batches.steps == 8 and result.batches.batch == 8
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.5)
    cells = [by_hand.layer1, by_hand.layer2]
    clipped, losses = 0, []
    for epoch in range(1, epochs + 1):
        start = int(stream_order(result.batches, seed=7, epoch=epoch)[0]) * WINDOW
        streams = np.stack([tokens[start + 40 * b : start + 40 * b + 41] for b in range(8)])
        for cell in cells:
            cell.initial = None
        total = 0.0
        for step in range(8):
            piece = torch.from_numpy(streams[:, step * WINDOW : (step + 1) * WINDOW + 1].astype(np.int64))
            outputs = by_hand(piece[:, :-1])
            loss = nn.functional.cross_entropy(outputs, piece[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            if clip_norm is not None:
                clipped += int(nn.utils.clip_grad_norm_(by_hand.parameters(), clip_norm) > clip_norm)
            optimizer.step()
            for cell in cells:
                cell.initial = cell.final
            total += loss.item() / 8
        losses.append(total)
    for (name, found), expected in zip(net.named_parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(found, expected, atol=2e-6), name
    assert [report.train_loss for report in result.curve] == pytest.approx(losses, rel=1e-5)
    assert (clipped > 0) == (clip_norm is not None)


def test_states_of_shards_are_those_of_their_streams() -> None:
    """Without carried states the training would be another one."""
    net, forgetful = network(), network()
    forgetful.layer1.register_forward_pre_hook(lambda cell, _: setattr(cell, "initial", None))
    run(net, data(), shards=2)
    run(forgetful, data(), shards=2)
    assert not torch.allclose(net.layer1.weight_hidden, forgetful.layer1.weight_hidden, atol=1e-4)  # type: ignore[union-attr,arg-type]


@pytest.mark.parametrize(("n_tokens", "n_streams"), [(98, 3), (31, 3), (6, 1), (7, 2), (62, 3)])
def test_scores_count_every_token_once(n_tokens: int, n_streams: int) -> None:
    net, tokens = network(), text(n_tokens, seed=2)
    part = scored_part(Split(*windows(tokens, WINDOW)), Info(), device=CPU)
    assert isinstance(part, StreamedPart) and len(part) == n_streams
    found = score(
        net,
        part,
        metrics=metrics_of("language_modelling", n_outputs=TOKENS),
        batch_size=2,
        autocast=autocast_of(CPU, "fp32"),
        data_parallel=SingleGang(),
        control=Free(),
        when="now",
    )
    n_targets, per_stream = n_tokens - 1, math.ceil(math.ceil((n_tokens - 1) / WINDOW) / STREAMS) * WINDOW
    nats = hits = 0.0
    with torch.no_grad():
        for first in range(0, n_targets, per_stream):
            piece = torch.from_numpy(tokens[first : min(first + per_stream, n_targets) + 1].astype(np.int64))
            outputs = net(piece[None, :-1])[0].t()
            nats += float(nn.functional.cross_entropy(outputs, piece[1:], reduction="sum"))
            hits += float((outputs.argmax(1) == piece[1:]).sum())
    assert found["cross_entropy"] == pytest.approx(nats / n_targets, rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(nats / n_targets), rel=1e-6)
    assert found["bits_per_character"] == pytest.approx(nats / n_targets / math.log(2), rel=1e-6)
    assert found["accuracy"] == hits / n_targets


def test_scoring_leaves_no_state_behind() -> None:
    net = network()
    run(net, data(), epochs=1)
    assert net.layer1.initial is None and net.layer1.final is None
    states = CarriedStates(net, slots=2)
    tokens = torch.randint(0, TOKENS, (2, WINDOW))
    for slot in (0, 1):
        states.enter(slot)
        first = net(tokens)
        states.leave(slot)
    states.enter(0)
    assert not torch.allclose(net(tokens), first)
    states.reset()
    states.enter(0)
    assert torch.equal(net(tokens), first)


def test_a_text_is_learned_and_repeats_to_the_bit() -> None:
    results = [run(network(dropout=0.1), data(1200), epochs=20, lr=1.0, clip_norm=1.0) for _ in range(2)]
    assert summary(results[0]) == summary(results[1])
    curve = results[0].curve
    assert curve[0].metrics["perplexity"] > 5.5 and curve[-1].metrics["perplexity"] < 4
    assert curve[-1].metrics["accuracy"] > 0.6


def test_a_share_of_the_text_is_its_beginning() -> None:
    whole, other = data(), data()
    other.train._x = other.train._x.clone()
    other.train._x[33:] = 0  # of 66 windows
    half = [summary(run(network(), which, fraction=0.5)) for which in (whole, other)]
    assert half[0] == half[1] and half[0]["samples_used"] == 32
    assert summary(run(network(), other))["losses"] != summary(run(network(), whole))["losses"]


def test_checkpoints_go_on_as_if_unbroken(tmp_path: Path) -> None:
    unbroken = run(network(dropout=0.2), data(), epochs=4, shards=2, clip_norm=0.5)
    run(network(dropout=0.2), data(), epochs=2, shards=2, clip_norm=0.5, checkpoint=tmp_path / "c")
    resumed = run(network(dropout=0.2), data(), epochs=4, shards=2, clip_norm=0.5, checkpoint=tmp_path / "c")
    assert summary(resumed) == summary(unbroken)
