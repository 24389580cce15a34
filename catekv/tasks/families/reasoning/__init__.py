"""Reasoning: problems with one right answer, and long answers that follow step by step."""
