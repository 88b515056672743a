"""Revisions of the database's tables; the control plane applies them when it starts."""
