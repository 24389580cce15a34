"""How the embedded model was made: its language, its training, its card."""
