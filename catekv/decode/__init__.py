"""After the prompt: contexts, the decode step and its CUDA graph, sampling, text."""
