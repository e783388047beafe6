"""`skytrain report`: what training runs and evaluations have left, on one page. Never imports torch."""
