"""What every benchmark shares: samples, prompts, tasks, tokenizers, random streams."""
