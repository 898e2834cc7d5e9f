"""The canonical form: against brute force, against published counts, on symmetric graphs, and in time."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable

import networkx as nx
import pytest

from nord_hpc.canonical import ORDERED_JOINS, CanonicalForm, canonical_form
from nord_hpc.errors import Infeasible

Edges = list[tuple[str, str]]


class Graph:
    """Labels, joins and ordered inputs of a test graph."""

    def __init__(self, labels: dict[str, str], edges: Edges, joins: dict[str, str] | None = None) -> None:
        self.labels = labels
        self.joins = joins or dict.fromkeys(labels, "add")
        self.inputs: dict[str, list[str]] = {name: [] for name in labels}
        for source, target in edges:
            self.inputs[target].append(source)

    def form(self) -> CanonicalForm:
        names = list(self.labels)
        return canonical_form(first=names[0], last=names[-1], labels=self.labels, joins=self.joins, inputs=self.inputs)

    def renamed(self, rng: random.Random) -> CanonicalForm:
        """The form of the same graph with other names, nodes in another order, and unordered inputs shuffled."""
        names = list(self.labels)
        new = {name: f"n{number}" for name, number in zip(names, rng.sample(range(1000), len(names)), strict=True)}
        order = rng.sample(names, len(names))
        inputs = {}
        for name in order:
            sources = list(self.inputs[name])
            if self.joins[name] not in ORDERED_JOINS:
                rng.shuffle(sources)
            inputs[new[name]] = [new[source] for source in sources]
        return canonical_form(
            first=new[names[0]],
            last=new[names[-1]],
            labels={new[name]: self.labels[name] for name in order},
            joins={new[name]: self.joins[name] for name in order},
            inputs=inputs,
        )

    def brute_force(self) -> object:
        """The least description over all orders of the live nodes; equal exactly for isomorphic graphs."""
        names = list(self.labels)
        graph = nx.DiGraph([(source, target) for target in names for source in self.inputs[target]])
        live = ({names[0]} | nx.descendants(graph, names[0])) & ({names[-1]} | nx.ancestors(graph, names[-1]))
        inner = [name for name in live if name not in (names[0], names[-1])]
        descriptions = []
        for order in itertools.permutations(inner):
            place = {name: index for index, name in enumerate((names[0], *order, names[-1]))}
            rows = []
            for name in place:
                sources = [place[source] for source in self.inputs[name] if source in live]
                join = self.joins[name] if len(sources) > 1 else ""
                rows.append((self.labels[name], join, sources if join == "concat" else sorted(sources)))
            descriptions.append(rows)
        return min(descriptions)


def random_graph(rng: random.Random, n_nodes: int, *, density: float, kinds: str, joins: tuple[str, ...]) -> Graph:
    names = [f"v{index}" for index in range(n_nodes)]
    labels = {name: rng.choice(kinds) for name in names} | {names[0]: "in", names[-1]: "out"}
    edges = [
        (names[source], names[target])
        for target in range(n_nodes)
        for source in range(target)
        if rng.random() < density or source == target - 1 == 0 or target - 1 == source == n_nodes - 2
    ]
    rng.shuffle(edges)
    return Graph(labels, edges, {name: rng.choice(joins) for name in names})


def layered(widths: list[int], related: Callable[[int, int, int], bool]) -> Graph:
    """in -> layers of equal nodes -> out, where `related(layer, i, j)` connects node i to node j of the next layer."""
    layers = [[f"{layer},{index}" for index in range(width)] for layer, width in enumerate(widths)]
    edges = [("in", name) for name in layers[0]] + [(name, "out") for name in layers[-1]]
    for layer, (lower, upper) in enumerate(itertools.pairwise(layers)):
        edges += [
            (source, target) for i, source in enumerate(lower) for j, target in enumerate(upper) if related(layer, i, j)
        ]
    names = ["in", *itertools.chain(*layers), "out"]
    return Graph({name: "x" if "," in name else name for name in names}, edges)


@pytest.mark.parametrize(("largest", "distinct"), [(4, 91), (5, 2532)])
def test_number_of_distinct_cells_is_the_published_one(largest: int, distinct: int) -> None:
    hashes = set()
    for n_nodes in range(2, largest + 1):
        pairs = [(i, j) for j in range(n_nodes) for i in range(j)]
        for mask in range(1 << len(pairs)):
            edges = [pair for bit, pair in enumerate(pairs) if mask >> bit & 1]
            sources, targets = {i for i, _ in edges}, {j for _, j in edges}
            if len(edges) > 9 or len(sources) < n_nodes - 1 or len(targets) < n_nodes - 1:
                continue
            for operations in itertools.product("abc", repeat=n_nodes - 2):
                labels = {str(node): label for node, label in enumerate(["in", *operations, "out"])}
                hashes.add(Graph(labels, [(str(i), str(j)) for i, j in edges]).form().sha256)
    assert len(hashes) == distinct


@pytest.mark.parametrize(
    ("n_nodes", "density", "kinds", "joins", "n_graphs"),
    [
        (4, 0.5, "ab", ("add", "concat"), 1500),
        (5, 0.5, "a", ("add", "mean", "concat"), 1500),
        (6, 0.4, "ab", ("add",), 1500),
        (7, 0.3, "a", ("add", "concat"), 600),
        (7, 0.5, "a", ("add",), 600),
    ],
)
def test_hashes_are_equal_exactly_for_isomorphic_graphs(
    n_nodes: int, density: float, kinds: str, joins: tuple[str, ...], n_graphs: int
) -> None:
    rng = random.Random(n_nodes)
    by_hash: dict[str, object] = {}
    by_form: dict[str, str] = {}
    compared = 0
    while compared < n_graphs:
        graph = random_graph(rng, n_nodes, density=density, kinds=kinds, joins=joins)
        try:
            form = graph.form()
        except Infeasible:
            continue
        compared += 1
        exact = graph.brute_force()
        assert by_hash.setdefault(form.sha256, exact) == exact
        assert by_form.setdefault(repr(exact), form.sha256) == form.sha256
        assert graph.renamed(rng)[1:] == form[1:]
    assert 10 < len(by_hash) < n_graphs


def random_regular(rng: random.Random, width: int, *, degree: int, n_layers: int) -> Graph:
    """Equal layers between which every node has up to `degree` connections; every other graph is a symmetric one."""
    relations = []
    for layer in range(n_layers):
        shifts = [rng.randrange(width) * (layer + 1) for _ in range(degree)]
        circulant = {(i, (i + shift) % width) for shift in shifts for i in range(width)}
        anything = {pair for _ in range(degree) for pair in enumerate(rng.sample(range(width), width))}
        relations.append(rng.choice([circulant, anything]))
    return layered([width] * n_layers, lambda layer, i, j: (i, j) in relations[layer])


@pytest.mark.parametrize(("width", "degree", "n_layers"), [(8, 3, 2), (8, 4, 2), (5, 2, 3), (7, 3, 3), (12, 3, 2)])
def test_names_do_not_count_in_regular_graphs(width: int, degree: int, n_layers: int) -> None:
    rng = random.Random(width)
    for _ in range(60):
        graph = random_regular(rng, width, degree=degree, n_layers=n_layers)
        form = graph.form()
        assert graph.renamed(rng)[1:] == form[1:]
        assert graph.renamed(rng)[1:] == form[1:]


def test_regular_graphs_agree_with_networkx() -> None:
    """Random 2- and 3-regular relations between two layers, which no refinement of colours can tell apart."""
    rng = random.Random(5)
    graphs = [random_regular(rng, 6, degree=degree, n_layers=2) for degree in (2, 3) for _ in range(20)]
    hashes = [graph.form().sha256 for graph in graphs]
    assert len(set(hashes)) >= 6
    matched = 0
    for (first, first_hash), (second, second_hash) in itertools.combinations(zip(graphs, hashes, strict=True), 2):
        matcher = nx.isomorphism.DiGraphMatcher(_networkx(first), _networkx(second), lambda a, b: a == b)
        isomorphic = matcher.is_isomorphic()
        matched += isomorphic
        assert isomorphic == (first_hash == second_hash)
    assert matched > 30


def _networkx(graph: Graph) -> nx.DiGraph:
    result = nx.DiGraph((source, target) for target, sources in graph.inputs.items() for source in sources)
    for name in result:
        result.nodes[name]["label"] = graph.labels[name]
    return result


SYMMETRIC = {
    "parallel branches": layered([10] * 3, lambda _, i, j: i == j),
    "many parallel branches": layered([300] * 3, lambda _, i, j: i == j),
    "complete": layered([5] * 5, lambda _, i, j: True),
    "all but a matching": layered([5] * 5, lambda _, i, j: i != j),
    "one cycle": layered([16] * 2, lambda _, i, j: (j - i) % 16 < 2),
    "two cycles": layered([16] * 2, lambda _, i, j: i // 8 == j // 8 and (j - i) % 8 < 2),
    "hypercube": layered([16] * 2, lambda _, i, j: (i ^ j).bit_count() == 1),
    "Fano plane": layered([7] * 2, lambda _, i, j: (j - i) % 7 in (1, 2, 4)),
    "plane of order 3": layered([13] * 2, lambda _, i, j: (j - i) % 13 in (0, 1, 3, 9)),
    "stacked cycles": layered([6] * 6, lambda _, i, j: (j - i) % 6 < 2),
    "torus": layered([16] * 2, lambda _, i, j: (i % 4 == j % 4) != (i // 4 == j // 4)),
}


@pytest.mark.parametrize("name", SYMMETRIC)
@pytest.mark.timing
def test_symmetric_graphs_do_not_explode(name: str) -> None:
    graph = SYMMETRIC[name]
    start = time.perf_counter()
    form = graph.form()
    assert time.perf_counter() - start < 1
    rng = random.Random(1)
    for _ in range(3):
        assert graph.renamed(rng)[1:] == form[1:]


def test_symmetric_graphs_differ() -> None:
    assert len({graph.form().sha256 for graph in SYMMETRIC.values()}) == len(SYMMETRIC)


def test_order_is_topological_and_begins_and_ends_with_first_and_last() -> None:
    graph = random_graph(random.Random(3), 30, density=0.2, kinds="ab", joins=("add", "concat"))
    order, inputs, _ = graph.form()
    assert (order[0], order[-1]) == ("v0", "v29")
    assert all(source < place for place, sources in enumerate(inputs) for source in sources)
    for name, sources in zip(order, inputs, strict=True):
        live = [source for source in graph.inputs[name] if source in order]
        named = [order[source] for source in sources]
        assert named == live if graph.joins[name] == "concat" else sorted(named) == sorted(live)


def test_dead_branches_do_not_count() -> None:
    alive = Graph({"in": "in", "a": "a", "out": "out"}, [("in", "a"), ("a", "out")])
    edges = [("in", "a"), ("in", "b"), ("c", "a"), ("c", "d"), ("d", "c"), ("a", "out")]
    dead = Graph({"in": "in", "a": "a", "b": "b", "c": "c", "d": "d", "out": "out"}, edges)
    assert dead.form() == alive.form()


def test_join_of_one_input_does_not_count_and_that_of_two_does() -> None:
    labels = {"in": "in", "a": "a", "out": "out"}
    chain = [("in", "a"), ("a", "out")]
    assert Graph(labels, chain, dict.fromkeys(labels, "concat")).form() == Graph(labels, chain).form()
    joins = ("add", "mean", "concat")
    forms = {Graph(labels, [*chain, ("in", "out")], dict.fromkeys(labels, join)).form().sha256 for join in joins}
    assert len(forms) == 3


def test_order_of_inputs_counts_in_a_concatenation_alone() -> None:
    labels = {"in": "in", "a": "a", "b": "b", "out": "out"}
    fork = [("in", "a"), ("in", "b")]
    there, back = [*fork, ("a", "out"), ("b", "out")], [*fork, ("b", "out"), ("a", "out")]
    assert Graph(labels, there).form() == Graph(labels, back).form()
    concat = dict.fromkeys(labels, "concat")
    assert Graph(labels, there, concat).form().sha256 != Graph(labels, back, concat).form().sha256
    alike = {**labels, "b": "a"}
    assert Graph(alike, there, concat).form().sha256 == Graph(alike, back, concat).form().sha256


def test_one_layer_is_a_graph() -> None:
    assert Graph({"only": "x"}, []).form()[:2] == (("only",), ((),))


def test_no_path_is_infeasible() -> None:
    with pytest.raises(Infeasible, match=r"^no path from 'in' to 'out'$"):
        Graph({"in": "in", "a": "a", "out": "out"}, [("in", "a")]).form()


def test_a_cycle_is_infeasible_and_named() -> None:
    edges = [("in", "a"), ("a", "b"), ("b", "c"), ("c", "a"), ("c", "out")]
    with pytest.raises(Infeasible, match=r"^a cycle: 'a' -> 'b' -> 'c' -> 'a'$"):
        Graph(dict.fromkeys(["in", "a", "b", "c", "out"], "x"), edges).form()
    with pytest.raises(Infeasible, match=r"^a cycle: 'a' -> 'in' -> 'a'$"):
        Graph(dict.fromkeys(["in", "a", "out"], "x"), [("in", "a"), ("a", "in"), ("a", "out")]).form()


_IN_ANOTHER_PROCESS = """
import json
from nord_hpc.canonical import canonical_form
edges = [("in", f"a{i}") for i in range(6)] + [(f"b{i}", "out") for i in range(6)]
edges += [(f"a{i}", f"b{(i + k) % 6}") for i in range(6) for k in (0, 1)]
names = {name for edge in edges for name in edge}
form = canonical_form(first="in", last="out", labels=dict.fromkeys(names, "x"), joins=dict.fromkeys(names, "add"),
    inputs={name: {source for source, target in edges if target == name} for name in names})
print(json.dumps(form[1:]))
"""


def test_form_does_not_depend_on_the_hash_seed() -> None:
    results = []
    for seed in "0", "1", "2":
        command = [sys.executable, "-c", _IN_ANOTHER_PROCESS]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
        results.append(json.loads(done.stdout))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize(("n_nodes", "density", "microseconds"), [(7, 0.3, 120), (8, 0.3, 120), (50, 0.1, 1000)])
@pytest.mark.timing
def test_form_is_fast(n_nodes: int, density: float, microseconds: float) -> None:
    rng = random.Random(2)
    graphs = [random_graph(rng, n_nodes, density=density, kinds="abcd", joins=("add",)) for _ in range(100)]
    graphs = [graph for graph in graphs if nx.has_path(_networkx(graph), "v0", f"v{n_nodes - 1}")]
    assert len(graphs) > 30
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for graph in graphs:
            graph.form()
        best = min(best, (time.perf_counter() - start) / len(graphs))
    assert best * 1e6 < microseconds
