"""Benchmarks: does a model answer better than before, and how sure is that? Never imports torch."""
