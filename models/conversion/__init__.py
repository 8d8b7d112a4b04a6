"""The same weights in a smaller file."""
