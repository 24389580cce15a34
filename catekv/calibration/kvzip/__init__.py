"""What KVzip's scores teach: gates that foretell them (KVzap), and which heads matter."""
