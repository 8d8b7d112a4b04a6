"""A small text-to-image model of SD1.5's kind, which draws the scenes of `scenes`: its parts, training and figures."""
