"""Words: English, hay, spelling, and the vocabulary of the embedded model."""
