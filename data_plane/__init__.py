"""The data plane: an agent that follows a control plane, and workers that carry the traffic."""
