"""What reproduces the tables of single papers, one folder a paper; needs a clone."""
