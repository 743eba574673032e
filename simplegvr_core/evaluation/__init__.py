"""Metrics, methods compared, and their report."""
