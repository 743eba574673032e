"""Timings and memory, measured against baselines."""
