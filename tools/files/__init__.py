"""Reading and writing large files safely."""
