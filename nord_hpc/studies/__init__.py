"""Studies of several searches or many networks: fair comparisons, cheap fidelities, tables of what was evaluated."""
