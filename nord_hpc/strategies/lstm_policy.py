"""The controller of Zoph and Le 2017: an LSTM that decides step by step, with anchor points for skips; in numpy alone.

Zoph and Le, "Neural Architecture Search with Reinforcement Learning" (arXiv 1611.01578). The gradient is written out,
so that the process that searches needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from nord_hpc.strategies.adam import Vector

Array = np.ndarray[Any, np.dtype[np.float64]]

INITIAL_RANGE = 0.08
"""Parameters begin uniform between its negative and it."""


class _Step(NamedTuple):
    """One step of the LSTM: a decision, or an anchor point from which all skips into one layer are decided.

    Attributes:
        decisions: their positions: one, or those of the skips.
        sources: for each skip the step whose output stands for the layer that it comes from; empty for a decision.
    """

    decisions: tuple[int, ...]
    sources: tuple[int, ...]


@dataclass
class _Trace:
    """What the gradient needs of one step."""

    inputs: list[Array] = field(default_factory=list)
    """By layer, [input and previous output]."""
    gates: list[tuple[Array, Array, Array, Array]] = field(default_factory=list)
    """By layer: input, forget and output gates, and candidates."""
    cells: list[Array] = field(default_factory=list)
    previous_cells: list[Array] = field(default_factory=list)
    output: Array = field(default_factory=lambda: np.zeros(0))
    probabilities: Array = field(default_factory=lambda: np.zeros(0))
    """Of the alternatives, or of each skip."""
    anchors: Array = field(default_factory=lambda: np.zeros(0))
    """[skips, units]: tanh of what a skip's two ends say."""


class LstmPolicy:
    """Decisions that each depend on all before them.

    A decision is a softmax over a linear function of the LSTM's output; what was chosen is embedded and is the input of
    the next step. Skips in a row are decided from one step, an anchor point: from layer j with the probability
    sigmoid(v . tanh(P h_j + C h)), where h is this step's output and h_j that of the step which ended layer j.

    Args:
        decisions: number of alternatives of each.
        skips: for each decision None, or, where it says by 0 or 1 whether a skip is there, the position of the last
            decision of the layer that it comes from. None where no decision is a skip.
        layers: of the LSTM.
        units: of each.
        rng: draws the initial parameters.

    Attributes:
        parameters: all of them, one after the other.
    """

    def __init__(
        self,
        decisions: Sequence[int],
        *,
        skips: Sequence[int | None] | None = None,
        layers: int = 2,
        units: int = 35,
        rng: np.random.Generator,
    ) -> None:
        self._decisions = tuple(decisions)
        self._layers, self._units = layers, units
        self._steps = _steps_of(self._decisions, skips)
        shapes = self._shapes()
        self.parameters: Vector = rng.uniform(
            -INITIAL_RANGE, INITIAL_RANGE, sum(int(np.prod(shape)) for shape in shapes.values())
        )
        self._named = _views(self.parameters, shapes)

    def sample(self, rng: np.random.Generator) -> list[int]:
        """One alternative of each decision."""
        return self._run(rng.random(len(self._decisions)).tolist(), None)[0]

    def gradient(self, choices: Sequence[int]) -> Vector:
        """Of the logarithm of the probability of these choices, by the parameters."""
        return self._backward(self._run(None, choices)[1], choices)

    def log_probability(self, choices: Sequence[int]) -> float:
        """The logarithm of the probability of these choices."""
        traces = self._run(None, choices)[1]
        total = 0.0
        for step, trace in zip(self._steps, traces, strict=True):
            for place, position in enumerate(step.decisions):
                if step.sources:
                    chance = trace.probabilities[place]
                    total += float(np.log(chance if choices[position] else 1 - chance))
                else:
                    total += float(np.log(trace.probabilities[choices[position]]))
        return total

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        n = self._units
        shapes: dict[str, tuple[int, ...]] = {"start": (n,)}
        for layer in range(self._layers):
            shapes[f"weight {layer}"], shapes[f"bias {layer}"] = (4 * n, 2 * n), (4 * n,)
        for step in self._steps:
            if not step.sources:
                (position,) = step.decisions
                n_alternatives = self._decisions[position]
                shapes[f"head {position}"] = (n_alternatives, n)
                shapes[f"head bias {position}"] = (n_alternatives,)
                shapes[f"embedding {position}"] = (n_alternatives, n)
        if any(step.sources for step in self._steps):
            shapes.update({"previous": (n, n), "current": (n, n), "v": (n,), "anchor": (n,)})
        return shapes

    def _run(self, draws: list[float] | None, given: Sequence[int] | None) -> tuple[list[int], list[_Trace]]:
        """Go through all steps with choices drawn by uniform numbers, or with given ones."""
        n = self._units
        hidden = [np.zeros(n) for _ in range(self._layers)]
        cells = [np.zeros(n) for _ in range(self._layers)]
        choices = [0] * len(self._decisions) if given is None else list(given)
        traces: list[_Trace] = []
        x = self._named["start"]
        for step in self._steps:
            trace = _Trace()
            for layer in range(self._layers):
                x = hidden[layer] = self._lstm(layer, np.concatenate([x, hidden[layer]]), cells, trace)
            trace.output = x
            traces.append(trace)
            if step.sources:
                self._decide_skips(step, traces)
                if draws is not None:
                    for position, chance in zip(step.decisions, trace.probabilities.tolist(), strict=True):
                        choices[position] = int(draws[position] < chance)
                x = self._named["anchor"]
            else:
                (position,) = step.decisions
                trace.probabilities = _softmax(
                    self._named[f"head {position}"] @ trace.output + self._named[f"head bias {position}"]
                )
                if draws is not None:
                    cumulative = trace.probabilities.cumsum()
                    choices[position] = int((cumulative <= draws[position] * cumulative[-1]).sum())
                x = self._named[f"embedding {position}"][choices[position]]
        return choices, traces

    def _lstm(self, layer: int, x: Array, cells: list[Array], trace: _Trace) -> Array:
        """One layer's output; its cell is replaced."""
        n = self._units
        sums = self._named[f"weight {layer}"] @ x + self._named[f"bias {layer}"]
        gates = _sigmoid(sums[: 3 * n])
        candidates = np.tanh(sums[3 * n :])
        trace.inputs.append(x)
        trace.previous_cells.append(cells[layer])
        trace.gates.append((gates[:n], gates[n : 2 * n], gates[2 * n :], candidates))
        cells[layer] = gates[n : 2 * n] * cells[layer] + gates[:n] * candidates
        trace.cells.append(cells[layer])
        output: Array = gates[2 * n :] * np.tanh(cells[layer])
        return output

    def _decide_skips(self, step: _Step, traces: list[_Trace]) -> None:
        trace = traces[-1]
        outputs_SU = np.stack([traces[source].output for source in step.sources])
        trace.anchors = np.tanh(outputs_SU @ self._named["previous"].T + self._named["current"] @ trace.output)
        trace.probabilities = _sigmoid(trace.anchors @ self._named["v"])

    def _backward(self, traces: list[_Trace], choices: Sequence[int]) -> Vector:
        """The gradient, by going back through the steps."""
        gradient: Vector = np.zeros_like(self.parameters)
        named = _views(gradient, self._shapes())
        n = self._units
        to_output = [np.zeros(n) for _ in traces]
        to_hidden = [np.zeros(n) for _ in range(self._layers)]
        to_cells = [np.zeros(n) for _ in range(self._layers)]
        to_next_input = np.zeros(n)
        for at in range(len(traces) - 1, -1, -1):
            step, trace = self._steps[at], traces[at]
            if step.sources:
                named["anchor"] += to_next_input
                self._skips_backward(at, traces, choices, named, to_output)
            else:
                (position,) = step.decisions
                named[f"embedding {position}"][choices[position]] += to_next_input
                to_logits = -trace.probabilities
                to_logits[choices[position]] += 1
                named[f"head {position}"] += np.outer(to_logits, trace.output)
                named[f"head bias {position}"] += to_logits
                to_output[at] += self._named[f"head {position}"].T @ to_logits
            above = to_output[at]
            for layer in range(self._layers - 1, -1, -1):
                to_x = self._lstm_backward(layer, trace, above + to_hidden[layer], to_cells, named)
                above, to_hidden[layer] = to_x[:n], to_x[n:]
            to_next_input = above
        named["start"] += to_next_input
        return gradient

    def _skips_backward(
        self,
        at: int,
        traces: list[_Trace],
        choices: Sequence[int],
        named: dict[str, Array],
        to_output: list[Array],
    ) -> None:
        step, trace = self._steps[at], traces[at]
        to_logits_S = np.array([choices[position] for position in step.decisions]) - trace.probabilities
        named["v"] += to_logits_S @ trace.anchors
        to_sums_SU = np.outer(to_logits_S, self._named["v"]) * (1 - trace.anchors**2)
        total_U = to_sums_SU.sum(axis=0)
        named["current"] += np.outer(total_U, trace.output)
        to_output[at] += self._named["current"].T @ total_U
        for to_sums_U, source in zip(to_sums_SU, step.sources, strict=True):
            named["previous"] += np.outer(to_sums_U, traces[source].output)
            to_output[source] += self._named["previous"].T @ to_sums_U

    def _lstm_backward(
        self, layer: int, trace: _Trace, to_output: Array, to_cells: list[Array], named: dict[str, Array]
    ) -> Array:
        """The gradient by one layer's input and previous output; that by its cell is replaced by the earlier one's."""
        entering, forgetting, leaving, candidates = trace.gates[layer]
        squashed = np.tanh(trace.cells[layer])
        to_cell = to_cells[layer] + to_output * leaving * (1 - squashed**2)
        to_sums = np.concatenate(
            [
                to_cell * candidates * entering * (1 - entering),
                to_cell * trace.previous_cells[layer] * forgetting * (1 - forgetting),
                to_output * squashed * leaving * (1 - leaving),
                to_cell * entering * (1 - candidates**2),
            ]
        )
        to_cells[layer] = to_cell * forgetting
        named[f"weight {layer}"] += np.outer(to_sums, trace.inputs[layer])
        named[f"bias {layer}"] += to_sums
        to_x: Array = self._named[f"weight {layer}"].T @ to_sums
        return to_x


def _steps_of(decisions: Sequence[int], skips: Sequence[int | None] | None) -> list[_Step]:
    """The steps of the LSTM.

    Raises:
        ValueError: what `skips` says does not fit the decisions.
    """
    sources = [None] * len(decisions) if skips is None else list(skips)
    if len(sources) != len(decisions):
        raise ValueError(f"skips() has {len(sources)} values for {len(decisions)} decisions")
    steps: list[_Step] = []
    step_of: list[int] = []
    for position, (n_alternatives, source) in enumerate(zip(decisions, sources, strict=True)):
        if source is None:
            steps.append(_Step((position,), ()))
        else:
            if n_alternatives != 2 or not 0 <= source < position:
                raise ValueError(
                    f"skips(): decision {position} has {n_alternatives} alternatives and comes from decision {source}; "
                    f"a skip has 2, and comes from an earlier decision"
                )
            last = steps[-1]
            # What comes from a skip of this very step needs a step of its own.
            if last.sources and step_of[source] != len(steps) - 1:
                steps[-1] = _Step((*last.decisions, position), (*last.sources, step_of[source]))
            else:
                steps.append(_Step((position,), (step_of[source],)))
        step_of.append(len(steps) - 1)
    return steps


def _views(vector: Vector, shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    """Parts of a vector by name, which change with it."""
    named, at = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        named[name] = vector[at : at + size].reshape(shape)
        at += size
    return named


def _softmax(logits: Array) -> Array:
    weights = np.exp(logits - logits.max())
    found: Array = weights / weights.sum()
    return found


def _sigmoid(values: Array) -> Array:
    found: Array = 0.5 + 0.5 * np.tanh(0.5 * values)
    return found
