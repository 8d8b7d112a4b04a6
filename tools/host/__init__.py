"""A ComfyUI that is installed somewhere: its Python, its command line, its folders."""
