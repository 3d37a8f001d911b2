"""Video files: sources, containers, FFmpeg, encoding and verification. Knows nothing of jobs."""

OWN_SLIP = "no return value(s) named"
"""Part of a warning that BestSource 22 causes: its `exporttimestamps` works, but is not declared."""
