"""KVzap: gates that foretell KVzip's scores from what attention reads."""
