"""One file an operation: the reference in PyTorch, its custom op and its public function. Imported as skytrain.kernels."""
