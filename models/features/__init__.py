"""An LLM's hidden states of prompts, and where they are cached."""
