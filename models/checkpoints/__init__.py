"""Names and shapes in files → models; each model's spellings are in one module."""
