"""Measurements for machines with a GPU: ``bench/gpu_suite.sh``; and ``bench/cpu_decode.py``."""
