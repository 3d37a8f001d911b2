"""The containers that an output can have. Imports nothing: the command line checks names before it loads a library."""

CONTAINERS = {".mkv": "matroska", ".mp4": "mp4", ".mov": "mov"}
"""FFmpeg's name of each, by suffix: those that keep a timestamp for each frame and take any encoder."""
