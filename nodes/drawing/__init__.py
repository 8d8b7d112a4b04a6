"""The attention map as a picture."""
