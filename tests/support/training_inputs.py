"""Inputs of the training nodes, for trainings that take a second. Their defaults are for real ones."""

NEW = {  # of New Cross-Adapter
    "template": "{text}",
    "system": "",
    "tokens": 12,
    "padding": "keep",
    "layer": -1,
    "heads": 8,
    "mlp_dim": 64,
    "seed": 0,
}
JOB = {  # of Train Cross-Adapter
    "steps": 2,
    "batch_size": 2,
    "accumulate": 1,
    "learning_rate": 1e-3,
    "unet": "frozen",
    "rank": 4,
    "drop_text": 0.0,
    "drop_llm": 0.0,
    "drop_clip": 0.0,
    "min_snr": 5.0,
    "quiet_start": 0,
    "seed": 1,
    "precision": "auto",
    "gradient_checkpointing": False,
    "save_every": 0,
    "resume": False,
}
