"""The command line: the only place that wires objects, sets log handlers and chooses exit codes."""
