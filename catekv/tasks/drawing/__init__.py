"""Sources of text that need no network: words, prose, a world to ask questions about."""
