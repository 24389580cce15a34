"""LongBench: 21 tasks of v1, the 13 of LongBench-E, and LongBench v2."""
