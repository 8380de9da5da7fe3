"""Turn bytes into tensors under a model's names, and back."""
