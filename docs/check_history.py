"""Recomputes the history digest of a run from what `nord-hpc trials DIR --json` prints, knowing nothing of nord_hpc.

nord-hpc trials DIR --json | python docs/check_history.py
"""

import hashlib
import json
import sys

FIELDS = ("number", "parents", "descriptor_hash", "fidelity", "seed", "state", "fitness")
RARE = ("settings", "continues", "reuses")

rows = [row for row in json.load(sys.stdin) if row["commit"] is not None]
digest = hashlib.sha256()
for row in sorted(rows, key=lambda row: row["commit"]):
    values = [row[field] for field in FIELDS]
    rare = {field: row[field] for field in RARE if row[field] not in (None, {})}
    line = json.dumps([*values, rare] if rare else values, separators=(",", ":"), sort_keys=True)
    digest.update(line.encode() + b"\n")
print(digest.hexdigest())
