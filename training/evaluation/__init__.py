"""Measurements of trained networks on benchmarks, and their report."""
