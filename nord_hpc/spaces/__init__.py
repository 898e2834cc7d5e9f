"""Search spaces: what can be sampled, mutated and crossed, one file each; names in job files stand in `registry`."""
