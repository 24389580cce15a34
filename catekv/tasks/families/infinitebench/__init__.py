"""InfiniteBench: twelve tasks above 100K tokens, six of them built anew at any length."""
