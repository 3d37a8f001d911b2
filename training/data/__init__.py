"""Data for training and evaluation: photographs, rendered scenes, pools, benchmarks, published data sets."""
