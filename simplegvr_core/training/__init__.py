"""Pairs, losses, the training loop and its commands."""
