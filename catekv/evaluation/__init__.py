"""Runs, their records, statistics and reports; calibration of head masks; efficiency."""
