"""The master, its workers, and how they reach each other. Knows no torch."""
