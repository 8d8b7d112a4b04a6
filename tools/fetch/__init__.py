"""The parts of tools/fetch_weights.py."""
