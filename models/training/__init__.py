"""How a Cross-Adapter learns: the objectives, what they are computed on, and the loop. Knows no particular UNet."""
