"""The `recipe` command: reads what people write, speaks HTTP to a control plane, runs a local stack."""
