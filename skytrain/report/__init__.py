"""`skytrain report`: what training runs, evaluations and preparations have left, on one page. Never imports torch."""
