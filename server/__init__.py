"""The server: vLLM's OpenAI handlers in an app of our own, over the generations of one bank."""
