"""`make bench`: what the data plane costs, beside nginx in the same run.

The proxy under test has one core, load and upstream share the other. Rows are measured in turn, five times over, and
the medians compared, because machines drift. The table says ratios; seconds of one machine mean little on another.
"""
