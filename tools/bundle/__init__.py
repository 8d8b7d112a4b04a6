"""One file that tests and measures the pack on a machine with a GPU and no network: `dev.py bundle` writes it."""
