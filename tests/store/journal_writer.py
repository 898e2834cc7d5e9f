"""Writes records and snapshots as fast as it can, says which are acknowledged, and waits for its death."""

from __future__ import annotations

import sys
from pathlib import Path

from nord_hpc.store.journal import Journal
from nord_hpc.store.run_folder import write_atomically

folder = Path(sys.argv[1])
with Journal(folder / "journal") as journal:
    number = len(journal.records)
    while True:
        for _ in range(1 + number % 3):
            journal.append({"kind": "finished", "number": number, "text": "x" * (number * 37 % 3000)})
            number += 1
        journal.sync()
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
        if number % 5 == 0:
            write_atomically(folder / "search.h5", b"%d:" % number + b"s" * 200_000 + b":%d" % number)
