"""What the commands know of ComfyUI: where it is installed, and which folders it reads models from."""
