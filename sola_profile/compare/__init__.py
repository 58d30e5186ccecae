"""Comparison: residuals between witnesses, scaling fits, slopes and crossovers."""
