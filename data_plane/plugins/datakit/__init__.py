"""Datakit: a workflow of calls, jq programs and conditions around the service's call (`reference/gateway.md` §1).

`handler` is the plugin; `engine` runs the nodes of one phase; `nodes` are the kinds; `state` is one request's run;
`sources` and `sinks` are the implicit nodes; `values` is JSON and how it becomes HTTP; `simple`, `programs` and
`evaluator` run jq.
"""

from data_plane.plugins.datakit.handler import Datakit

__all__ = ["Datakit"]
