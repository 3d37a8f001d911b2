"""Video files: sources, what their containers hold, FFmpeg, encoding and verification. Knows nothing of jobs."""
