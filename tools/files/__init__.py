"""Reads headers of large files and writes such files safely."""
