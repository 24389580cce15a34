"""ZeroSCROLLS: ten tasks on long documents, and the file for its leaderboard."""
