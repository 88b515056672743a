"""The faces of the control plane: Konnect's paths, core entities, the atomic apply, nodes, analytics."""
