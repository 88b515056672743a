"""The faces of the control plane: Konnect's paths, core entities, the atomic apply, nodes, analytics."""

from control_plane.api.segments import register

register()  # before any route is made: each looks its convertors up once
