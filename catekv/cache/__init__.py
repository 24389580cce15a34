"""The two extension points of transformers: the attention function and the cache layers."""
