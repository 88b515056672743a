"""The node's agent: everything of a data plane node that is not traffic.

One agent holds the gRPC connection to the control plane, the last good snapshot, the spool of analytics and the status
API; it starts the workers and talks to them over a Unix socket (`channel`).
"""
