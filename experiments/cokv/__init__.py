"""CoKV's experiments: heads masked, importance, benchmarks, latency."""
