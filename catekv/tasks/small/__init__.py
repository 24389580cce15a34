"""Short texts for small vocabularies: stories and the parts of their prompts."""
