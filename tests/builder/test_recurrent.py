"""The layers of sequences: the cell against torch's own LSTM and RNN, states, and weights that are tied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nord_hpc.builder import plan
from nord_hpc.builder.cell_trees import LSTM, TANH, CellTree
from nord_hpc.builder.network import build
from nord_hpc.builder.recurrent import Embedding, PositionLinear, RecurrentCell
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import Infeasible
from nord_hpc.training import weights

WIDTH, N_INPUTS, N_STEPS, BATCH = 6, 5, 9, 3


def cell_like(torchs: nn.LSTM | nn.RNN, tree: CellTree, leaves: dict[int, int]) -> RecurrentCell:
    """The cell with weights copied.

    Args:
        leaves: our leaf to torch's gate; all other leaves get weights of zero.
    """
    cell = RecurrentCell(N_INPUTS, WIDTH, tree.to_json())
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
        for leaf, gate in leaves.items():
            ours, theirs = slice(leaf * WIDTH, (leaf + 1) * WIDTH), slice(gate * WIDTH, (gate + 1) * WIDTH)
            cell.weight_input[ours] = torchs.weight_ih_l0[theirs]
            cell.weight_hidden[ours] = torchs.weight_hh_l0[theirs]
            cell.bias[ours] = torchs.bias_ih_l0[theirs] + torchs.bias_hh_l0[theirs]
    return cell


def torchs_lstm() -> tuple[nn.LSTM, RecurrentCell]:
    torch.manual_seed(0)
    lstm = nn.LSTM(N_INPUTS, WIDTH, batch_first=True)
    # torch's gates stand in the order input, forget, new, output.
    return lstm, cell_like(lstm, LSTM, {0: 1, 2: 0, 3: 2, 4: 3})


def torchs_rnn() -> tuple[nn.RNN, RecurrentCell]:
    torch.manual_seed(0)
    rnn = nn.RNN(N_INPUTS, WIDTH, batch_first=True)
    return rnn, cell_like(rnn, TANH, {0: 0})


@pytest.mark.parametrize("make", [torchs_lstm, torchs_rnn])
def test_cells_of_the_space_are_torchs_own(make: Any) -> None:
    theirs, ours = make()
    x = torch.randn(BATCH, N_STEPS, N_INPUTS) * 2
    theirs_x, ours_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected, state = theirs(theirs_x)
    found = ours(ours_x.transpose(1, 2)).transpose(1, 2)
    assert torch.allclose(found, expected, atol=1e-5, rtol=0)
    weighted = torch.randn_like(expected)
    (expected * weighted).sum().backward()
    (found * weighted).sum().backward()
    assert theirs_x.grad is not None and ours_x.grad is not None
    assert torch.allclose(ours_x.grad, theirs_x.grad, atol=1e-5, rtol=0)
    h, c = ours.final
    assert torch.allclose(h, (state[0] if isinstance(state, tuple) else state)[0], atol=1e-5, rtol=0)
    if isinstance(state, tuple):
        assert torch.allclose(c, state[1][0], atol=1e-5, rtol=0)
    else:
        assert not c.any()


@pytest.mark.parametrize("drawing", ["given", "canonical"])
def test_canonical_drawings_compute_the_same(drawing: str) -> None:
    """The LSTM again, with its leaves where the canonical drawing has them."""
    lstm, cell = torchs_lstm()
    tree = LSTM if drawing == "given" else LSTM.canonical()
    # Leaves of one role only, but for the input and forget gates, which `read` tells apart.
    sigmoids = [leaf for leaf in range(8) if tree.nodes[leaf] == ("add", "sigmoid")]
    forget = tree.read
    (entry,) = [leaf for leaf in sigmoids if leaf != forget]
    (new,) = [leaf for leaf in range(8) if tree.nodes[leaf] == ("add", "tanh")]
    (gate,) = [node for node in range(8, 15) if tree.nodes[node] == ("add", "sigmoid")]
    output = tree.children(tree.children(gate)[0])[0]
    other = cell_like(lstm, tree, {forget: 1, entry: 0, new: 2, output: 3})
    x = torch.randn(BATCH, N_INPUTS, N_STEPS)
    assert torch.allclose(other(x), cell(x), atol=1e-6)


def test_the_paper_s_example_by_hand() -> None:
    """Figure 5 of the paper: h = sigmoid(relu(a0 + c) x a1), c' = W3 x  x  W4 h."""
    tree = CellTree(
        (("add", "tanh"), ("elem_mult", "relu"), ("elem_mult", "sigmoid")), inject=("add", "relu"), read=0, write=1
    )
    torch.manual_seed(0)
    cell = RecurrentCell(N_INPUTS, WIDTH, tree.to_json())
    x = torch.randn(BATCH, N_INPUTS, 2)
    h = c = torch.zeros(BATCH, WIDTH)
    for step in range(2):
        inputs = x[:, :, step] @ cell.weight_input.t() + cell.bias
        hidden = h @ cell.weight_hidden.t()
        a0 = torch.tanh(inputs[:, :WIDTH] + hidden[:, :WIDTH])
        product = inputs[:, WIDTH:] * hidden[:, WIDTH:]
        a0 = torch.relu(a0 + c)
        h, c = torch.sigmoid(a0 * torch.relu(product)), product
    assert torch.allclose(cell(x)[:, :, 1], h, atol=1e-6)
    assert torch.allclose(cell.final[1], c, atol=1e-6)  # type: ignore[index]


def test_a_sequence_in_two_pieces_is_one_sequence() -> None:
    _, cell = torchs_lstm()
    x = torch.randn(BATCH, N_INPUTS, N_STEPS)
    whole = cell(x)
    first = cell(x[:, :, :4])
    cell.initial = cell.final
    second = cell(x[:, :, 4:])
    assert torch.allclose(torch.cat([first, second], dim=2), whole, atol=1e-6)
    assert cell.final is not None and not cell.final[0].requires_grad


def language_network(*, width: int = 4, embedding: int = 4, first: str = "Embedding") -> NeuralDescriptor:
    made = NeuralDescriptor()
    if first == "Embedding":
        made.add_layer("Embedding", {"embedding_dim": embedding})
    else:
        made.add_layer("Identity")
    made.add_layer_sequential("RecurrentCell", {"hidden_size": width, "cell": LSTM.to_json()})
    return made


TIED = {"features": "positions", "tied": True}


def test_tied_weights_are_one_tensor(tmp_path: Path) -> None:
    made = plan(language_network(), input_shape=(11, 7), n_outputs=11, head=TIED)
    assert made.output_shape == (11, 7)
    cell = 8 * 4 * (4 + 4)
    assert made.n_parameters == 11 * 4 + cell + 8 * 4 + 11
    assert made.multiply_adds == 7 * (cell + 4 * 11)
    network = build(made, seed=0)
    assert sum(parameter.numel() for parameter in network.parameters()) == made.n_parameters
    tokens = torch.randint(0, 11, (2, 7))
    output = network(tokens)
    assert output.shape == (2, 11, 7)
    embedding, cells, dense = network.layer0, network.layer1, network.layer2
    assert isinstance(embedding, Embedding) and isinstance(dense, PositionLinear)
    by_hand = torch.einsum("vc,nct->nvt", embedding.weight, cells(embedding(tokens))) + dense.bias.view(1, -1, 1)  # type: ignore[union-attr,operator]
    assert torch.allclose(output, by_hand, atol=1e-6)
    weights.save(network, tmp_path / "w", metadata={})
    other = build(made, seed=1)
    assert not torch.allclose(other(tokens), output)
    weights.load(other, tmp_path / "w", metadata={})
    assert torch.equal(other(tokens), output)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (language_network(embedding=3), "is tied, but gets 4 features, and the embedding has 3"),
        (language_network(first="Identity"), "is tied, but the first layer is a Identity and no Embedding"),
    ],
)
def test_weights_that_cannot_be_tied(network: NeuralDescriptor, reason: str) -> None:
    with pytest.raises(Infeasible) as caught:
        plan(network, input_shape=(11, 7), n_outputs=11, head=TIED)
    assert caught.value.reason == f"layer 'head.linear0' (PositionLinear) {reason}"


def test_memory_of_a_cell_counts_what_its_steps_keep() -> None:
    made = plan(language_network(), input_shape=(11, 7), n_outputs=11, head={"features": "positions"})
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel() if tensor.grad_fn is not None or not tensor.is_leaf else 0)
        return tensor

    cell = build(made, seed=0).layer1
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        cell(torch.randn(3, 4, 7))  # type: ignore[operator]
    # Sums and identities keep nothing, so the estimate for any tree is above what the LSTM's needs.
    assert 3 * made.steps[1].n_inner_values * 0.25 < sum(kept) < 3 * made.steps[1].n_inner_values


def test_heads_over_positions_have_hidden_layers() -> None:
    head = {"features": "positions", "layers": [5], "dropout": 0.1}
    made = plan(language_network(), input_shape=(11, 7), n_outputs=11, head=head)
    assert [step.kind for step in made.steps[2:]] == ["Dropout", "PositionLinear", "ReLU", "Dropout", "PositionLinear"]
    assert build(made, seed=0)(torch.randint(0, 11, (2, 7))).shape == (2, 11, 7)
