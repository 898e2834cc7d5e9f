"""Searches of NAS-Bench-201 by the protocol of its paper, in several processes, for comparison with its figures."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from nasbench201_example import TABLE

from nord_hpc import job as jobs
from nord_hpc.cluster.parts import make_evaluator, make_maker
from nord_hpc.studies.simulate_search import simulate

BUDGET_SECONDS = 12_000.0

STRATEGIES: dict[str, dict[str, Any]] = {
    "random_search": {"name": "random_search"},
    "regularized_evolution": {"name": "regularized_evolution", "population": 10, "sample": 3},
    "reinforce": {"name": "reinforce", "policy": "factorized", "lr": 0.1},
    "reinforce_slow": {"name": "reinforce", "policy": "factorized", "lr": 0.01},
    "local_search": {"name": "local_search"},
}


def search_job(strategy: str, seed: int, **budget: Any) -> jobs.Job:
    """12 epochs guide, one worker, repeats are charged again."""
    return jobs.from_mapping(
        {
            "name": strategy,
            "seed": seed,
            "space": {"name": "nasbench201"},
            "strategy": STRATEGIES[strategy],
            "evaluator": {"name": "nasbench201", "path": str(TABLE)},
            "training": {"epochs": 12},
            "candidates": {"duplicates": "retrain"},
            "budget": budget or {"simulated_seconds": BUDGET_SECONDS},
            "order": {"virtual_gangs": 1},
        },
        folder=Path("."),
    )


def final_figures(strategy: str, seeds: Sequence[int]) -> list[tuple[float, float, int]]:
    """For each seed the best candidate's means after 200 epochs, validation and test in percent, and the trials."""
    evaluator = make_evaluator(search_job(strategy, 0), Path("."))
    found = []
    for seed in seeds:
        searching, maker = make_maker(search_job(strategy, seed), evaluator)
        result = simulate(search_job(strategy, seed), strategy=searching, maker=maker, evaluator=evaluator)
        found.append((100 * result.test["validation_accuracy"], 100 * result.test["accuracy"], result.n_trials))
    return found


def validation_of_each(strategy: str, seed: int, *, n_trials: int) -> list[float]:
    """The 12-epoch validation accuracy, in percent, of each trial of a search."""
    made = search_job(strategy, seed, trials=n_trials)
    evaluator = make_evaluator(made, Path("."))
    searching, maker = make_maker(made, evaluator)
    scores: list[float] = []
    simulate(
        made,
        strategy=searching,
        maker=maker,
        evaluator=evaluator,
        on_commit=lambda finished: scores.append(100 * (finished.outcome.fitness or 0)),
    )
    return scores


def in_processes(strategies: Sequence[str], n_runs: int, *, n_processes: int = 2) -> dict[str, Any]:
    """Strategy to [runs, 3]; see `final_figures`. The searches of all strategies have the same seeds."""
    parts = [range(first, n_runs, n_processes) for first in range(n_processes)]
    with ProcessPoolExecutor(n_processes, multiprocessing.get_context("spawn")) as pool:
        waiting = {name: [pool.submit(final_figures, name, part) for part in parts] for name in strategies}
        results = {}
        for name, futures in waiting.items():
            columns = [future.result() for future in futures]
            in_order = [run for row in itertools.zip_longest(*columns) for run in row if run is not None]
            results[name] = np.array(in_order)
    return results
