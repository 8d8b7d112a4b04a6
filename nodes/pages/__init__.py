"""What the front end's part of the pack (`web/`) asks the server."""
