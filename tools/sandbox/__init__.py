"""Installs a ComfyUI for developers, makes stand-in weights, and runs the pack in it for the demo and the tests."""
