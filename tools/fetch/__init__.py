"""What tools/fetch_weights.py does."""
