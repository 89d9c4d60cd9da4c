"""The interactive shell: what people type at its prompt, and what they see there."""
