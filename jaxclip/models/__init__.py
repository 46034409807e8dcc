"""The encoders: one file for each tower, and clip.py for the two whole models."""
