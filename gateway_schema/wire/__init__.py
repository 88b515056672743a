"""Stubs generated from `proto/` by `make proto`; a test keeps them current."""
