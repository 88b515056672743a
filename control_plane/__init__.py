"""The control plane: where configuration lives."""
