"""Benchmarks of speed and memory against the published way."""
