"""Runs: generation after generation, trained and measured. The only writer of run records."""
