"""Measured numbers: counted FLOPs, latency and its statistics, peak memory."""
