"""The scripts of the paper: one for each table or figure, each runnable alone as `python -m experiments.NAME`."""
