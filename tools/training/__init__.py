"""What train.py is made of: the job, the pictures, the run's folder, and a ComfyUI without its server."""
