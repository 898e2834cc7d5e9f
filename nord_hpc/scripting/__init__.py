"""What a Python script uses in place of a job file: networks, evaluators, data sets by name, ranks as a context."""
