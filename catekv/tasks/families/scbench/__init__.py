"""SCBench: several questions about one context, in turns or as requests of their own."""
