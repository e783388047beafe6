"""One file an operation: the reference in PyTorch, its custom op, its public function."""
