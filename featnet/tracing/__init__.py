"""Show what one run of a network on the meta device does: calls, sizes, tensors; change no
model."""
