"""Configurations of whole studies, as code: which models, which data sets, which analyses."""
