"""The routed sparse-LoRA operation: a slow reference, and the paths that must equal it."""
