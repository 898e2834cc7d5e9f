"""Training of one candidate on 1 or N ranks: data, loop, metrics, weights. Others build and choose candidates."""
