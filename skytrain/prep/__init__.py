"""Data preparation commands. Never imports torch."""
