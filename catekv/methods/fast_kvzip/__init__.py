"""Fast KVzip: low-rank gates that foretell KVzip's scores."""
