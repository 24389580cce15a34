"""Head masks of a model: the reference set, the sweep over percentile and scale, the choice."""
