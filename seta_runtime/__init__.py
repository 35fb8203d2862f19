"""The vLLM plugin: serves a bank's generations as routed sparse-LoRA layers."""
