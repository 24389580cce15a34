"""What a run directory holds: records, their locks, the environment."""
