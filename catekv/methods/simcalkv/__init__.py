"""SimCalKV: similar tokens merged, with calibrated weights; its baselines."""
