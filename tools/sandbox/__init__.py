"""A ComfyUI of the project's own, with stand-in weights, to demonstrate and test the pack in."""
