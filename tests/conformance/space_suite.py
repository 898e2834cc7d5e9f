"""What every search space must keep: the tests that each space's test file inherits and gives its own variants."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nord_hpc import registry
from nord_hpc.builder import plan
from nord_hpc.errors import Infeasible

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 40) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def make_space(name: str, options: dict[str, Any]) -> Any:
    """The space of that name in the registry, or "file.py:Class", with these options."""
    cls = registry.resolve("space", name, folder=Path("."))
    return cls(cls.Options.model_validate(options))


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def walk(space: Any, seed: int, n_steps: int) -> list[Any]:
    """A sample and its successive mutations, now and then crossed with another sample."""
    rng = generator(seed)
    genotypes = [space.sample(rng)]
    for step in range(n_steps):
        if step % 5 == 4:
            genotypes.append(space.crossover(genotypes[-1], space.sample(rng), rng))
        else:
            genotypes.append(space.mutate(genotypes[-1], rng))
    return genotypes


def for_seeds(check: Callable[[int], None], *, examples: int = 60) -> None:
    """Run a check with many seeds; the one that fails is reported."""
    configured = settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    configured(given(seed=st.integers(0, 2**32 - 1))(check))()


def text_of(genotype: Any) -> str:
    return json.dumps(genotype, allow_nan=False, sort_keys=True)


class SpaceSuite:
    """Inherit as `class TestMySpace(SpaceSuite)` and set the attributes.

    Attributes:
        name: in the registry.
        variants: name of the case to options.
        input_shape, n_outputs: of data that the space is meant for.
        infeasible_share: the share of the samples that may be infeasible on it.
        mutations_always_differ: False for spaces with points that have no neighbour.
        mutations_are_neighbours: False for spaces whose mutations may make several changes at once.
    """

    name: ClassVar[str]
    variants: ClassVar[dict[str, dict[str, Any]]] = {"default": {}}
    input_shape: ClassVar[tuple[int, ...]] = (1, 8, 8)
    n_outputs: ClassVar[int] = 10
    infeasible_share: ClassVar[float] = 0.0
    mutations_always_differ: ClassVar[bool] = True
    mutations_are_neighbours: ClassVar[bool] = True

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "variant" in metafunc.fixturenames:
            metafunc.parametrize("variant", list(self.variants))

    @pytest.fixture
    def space(self, variant: str) -> Any:
        return make_space(self.name, self.variants[variant])

    def test_whatever_operators_return_is_contained(self, space: Any) -> None:
        def check(seed: int) -> None:
            for genotype in walk(space, seed, 12):
                assert space.contains(genotype), genotype

        for_seeds(check)

    def test_operators_leave_their_arguments_alone(self, space: Any) -> None:
        def check(seed: int) -> None:
            rng = generator(seed)
            first, second = space.sample(rng), space.sample(rng)
            before = text_of(first), text_of(second)
            space.mutate(first, rng)
            space.crossover(first, second, rng)
            space.contains(first)
            space.to_descriptor(first)
            assert (text_of(first), text_of(second)) == before

        for_seeds(check)

    def test_results_share_nothing_with_arguments(self, space: Any) -> None:
        def check(seed: int) -> None:
            rng = generator(seed)
            first, second = space.sample(rng), space.sample(rng)
            before = _containers(first) | _containers(second)
            assert not before & _containers(space.mutate(first, rng))
            assert not before & _containers(space.crossover(first, second, rng))

        for_seeds(check, examples=20)

    def test_genotypes_survive_json(self, space: Any) -> None:
        def check(seed: int) -> None:
            for genotype in walk(space, seed, 6):
                read = json.loads(text_of(genotype))
                assert read == genotype
                assert space.contains(read)
                assert text_of(space.mutate(read, generator(seed))) == text_of(space.mutate(genotype, generator(seed)))
                assert space.to_descriptor(read).to_json() == space.to_descriptor(genotype).to_json()

        for_seeds(check)

    def test_equal_generators_give_equal_results(self, space: Any) -> None:
        def check(seed: int) -> None:
            first, second = generator(seed), generator(seed)
            for _ in range(4):
                genotypes = [space.sample(first), space.sample(second)]
                assert text_of(genotypes[0]) == text_of(genotypes[1])
                children = [space.mutate(genotypes[0], first), space.mutate(genotypes[0], second)]
                assert text_of(children[0]) == text_of(children[1])
                crossed = [space.crossover(*genotypes, first), space.crossover(*genotypes, second)]
                assert text_of(crossed[0]) == text_of(crossed[1])
                assert first.bit_generator.state == second.bit_generator.state

        for_seeds(check)

    def test_results_do_not_depend_on_the_hash_seed_of_the_process(self) -> None:
        here = [walk_digest(self.name, options) for options in self.variants.values()]
        for hash_seed in (0, 1):
            assert _digests_in_process(self.name, list(self.variants.values()), hash_seed) == here

    def test_mutations_differ_from_their_argument(self, space: Any) -> None:
        def check(seed: int) -> None:
            genotypes = walk(space, seed, 4)
            for genotype in genotypes:
                child = space.mutate(genotype, generator(seed))
                assert child != genotype or not self.mutations_always_differ

        for_seeds(check)

    def test_samples_and_mutations_vary(self, space: Any) -> None:
        rng = generator(0)
        samples = {text_of(space.sample(rng)) for _ in range(100)}
        assert len(samples) > 1
        parent = space.sample(rng)
        assert len({text_of(space.mutate(parent, rng)) for _ in range(100)}) > 1

    def test_junk_is_not_contained_and_raises_nothing(self, space: Any) -> None:
        @settings(max_examples=200, deadline=None, derandomize=True, database=None)
        @given(JUNK, st.integers(0, 1000))
        def check(junk: Any, seed: int) -> None:
            assert space.contains(junk) in (True, False)
            genotype = space.sample(generator(seed))
            for damaged in _damaged(genotype, junk, generator(seed)):
                assert space.contains(damaged) in (True, False)
            assert not space.contains({"not": "a genotype", "junk": junk})

        check()

    def test_networks_are_feasible_and_have_one_hash(self, space: Any) -> None:
        n_infeasible = n_networks = 0

        def check(seed: int) -> None:
            nonlocal n_infeasible, n_networks
            for genotype in walk(space, seed, 4):
                descriptor = space.to_descriptor(genotype)
                json.dumps(descriptor.to_json(), allow_nan=False)
                assert descriptor.canonical_hash() == space.to_descriptor(genotype).canonical_hash()
                n_networks += 1
                try:
                    plan(descriptor, input_shape=self.input_shape, n_outputs=self.n_outputs)
                except Infeasible as error:
                    assert error.reason
                    n_infeasible += 1

        for_seeds(check)
        assert n_infeasible <= self.infeasible_share * n_networks

    def test_neighbours_are_what_mutations_make(self, space: Any) -> None:
        if not hasattr(space, "neighbours"):
            pytest.skip("this space does not list its neighbours")

        def check(seed: int) -> None:
            genotype = walk(space, seed, 3)[-1]
            texts = [text_of(neighbour) for neighbour in space.neighbours(genotype)]
            distinct = set(texts)
            assert len(distinct) == len(texts)
            assert text_of(genotype) not in distinct
            assert all(space.contains(json.loads(text)) for text in texts)
            rng = generator(seed)
            mutated = {text_of(space.mutate(genotype, rng)) for _ in range(40)}
            assert mutated <= distinct if self.mutations_are_neighbours else mutated & distinct

        for_seeds(check, examples=5)


def _containers(value: Any) -> set[int]:
    if isinstance(value, dict):
        return {id(value)}.union(*(_containers(item) for item in value.values()))
    if isinstance(value, list):
        return {id(value)}.union(*(_containers(item) for item in value))
    return set()


def _damaged(genotype: Any, junk: Any, rng: np.random.Generator) -> list[Any]:
    """The genotype with each of a few of its parts, found by walking down at random, replaced by junk or left out."""
    results = []
    for leave_out in (False, True):
        for _ in range(3):
            damaged = json.loads(text_of(genotype))
            place = damaged
            while isinstance(place, (list, dict)) and place:
                keys = list(place) if isinstance(place, dict) else list(range(len(place)))
                key = keys[int(rng.random() * len(keys))]
                if not isinstance(place[key], (list, dict)) or rng.random() < 0.3:
                    if leave_out:
                        del place[key]
                    else:
                        place[key] = junk
                    break
                place = place[key]
            results.append(damaged)
    return results


def walk_digest(name: str, options: dict[str, Any]) -> str:
    """A digest of genotypes and networks that a space makes from a few seeds."""
    space = make_space(name, options)
    sha256 = hashlib.sha256()
    for seed in range(5):
        for genotype in walk(space, seed, 20):
            sha256.update(text_of(genotype).encode())
            sha256.update(space.to_descriptor(genotype).canonical_hash().encode())
    return sha256.hexdigest()


def _digests_in_process(name: str, variants: list[dict[str, Any]], hash_seed: int) -> list[str]:
    folders = [
        str(Path(__file__).parents[1]),
        str(Path(registry.__file__).parents[1]),
        os.environ.get("PYTHONPATH", ""),
    ]
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": os.pathsep.join(folders)}
    code = (
        "import json, sys; from conformance.space_suite import walk_digest; "
        "print(json.dumps([walk_digest(sys.argv[1], options) for options in json.loads(sys.argv[2])]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, name, json.dumps(variants)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    digests: list[str] = json.loads(done.stdout)
    return digests
