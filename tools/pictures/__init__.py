"""Draws the pictures for the README, the help pages and the example workflows, as the real front end shows them."""
