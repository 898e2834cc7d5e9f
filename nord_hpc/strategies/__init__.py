"""Strategies: what to evaluate next, by ask and tell, one file each; names in job files stand in `registry`."""
