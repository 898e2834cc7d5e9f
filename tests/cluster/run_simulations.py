"""Runs random schedules on the simulated transport; prints their rate, and the number of each that fails.

SCHEDULES=10000 says how many, SEED=n runs the one of that number alone, FIRST=n where to begin.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cluster import schedules

MOST_SHOWN = 10


def main() -> int:
    alone = os.environ.get("SEED")
    first = int(alone or os.environ.get("FIRST", "0"))
    count = 1 if alone else int(os.environ.get("SCHEDULES", "500"))
    began = time.perf_counter()
    kinds: Counter[str] = Counter()
    lives = takeovers = attempts = n_failed = 0
    for number in range(first, first + count):
        kinds[schedules.schedule(number).kind] += 1
        try:
            result = schedules.run(number)
        except Exception as error:
            n_failed += 1
            print(f"SEED={number} fails: {type(error).__name__}: {error}", flush=True)
            if n_failed == MOST_SHOWN:
                break
            continue
        lives += result.lives
        takeovers += result.takeovers
        attempts += len(result.started)
        if alone:
            print(schedules.schedule(number))
    n_run, seconds = sum(kinds.values()), time.perf_counter() - began
    print(
        f"{n_run} schedules of {len(kinds)} kinds in {seconds:.1f} s, {n_run / seconds:.0f} a second: "
        f"{n_failed} failed; "
        f"{lives} lives, {takeovers} take-overs, {attempts} attempts"
    )
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
