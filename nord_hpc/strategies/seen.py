"""Which genotypes have been proposed: a bounded memory of hashes, so that a strategy need not repeat itself."""

from __future__ import annotations

import hashlib
import json

from nord_hpc.trial import Json

KEY_BYTES = 8


class Seen:
    """The latest genotypes that were added, as hashes of 64 bits of their JSON text.

    Args:
        capacity: how many are remembered; the oldest are forgotten first.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._keys: dict[str, None] = {}

    def __contains__(self, genotype: Json) -> bool:
        return _key(genotype) in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, genotype: Json) -> bool:
        """Remember it; whether it is new."""
        key = _key(genotype)
        if key in self._keys:
            return False
        self._keys[key] = None
        if len(self._keys) > self._capacity:
            del self._keys[next(iter(self._keys))]
        return True

    def state_dict(self) -> Json:
        """All hashes in one text, oldest first."""
        return "".join(self._keys)

    def load_state_dict(self, state: Json) -> None:
        width = 2 * KEY_BYTES
        self._keys = dict.fromkeys(state[at : at + width] for at in range(0, len(state), width))


def _key(genotype: Json) -> str:
    text = json.dumps(genotype, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=KEY_BYTES).hexdigest()
