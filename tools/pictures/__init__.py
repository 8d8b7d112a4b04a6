"""The pictures in the README, the help pages and the example workflows, drawn by the real front end."""
