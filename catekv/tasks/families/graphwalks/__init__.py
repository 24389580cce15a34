"""GraphWalks: walks over a graph that is given edge by edge."""
