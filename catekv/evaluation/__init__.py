"""Runs, their records, statistics and reports; efficiency; sweeps over many runs."""
