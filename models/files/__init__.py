"""Weight files as bytes and named tensors; knows no model."""
