"""`make bench`: what both planes cost, beside nginx and beside decK in the same run.

*Data plane.* The proxy under test has one core, load and upstream share the other. Rows are measured in turn, five
times over, and the medians compared, because machines drift. The table says ratios to nginx.

*Control plane.* The process under test has one core; the database, the nodes and whoever calls share the other. It runs
on SQLite and on a PostgreSQL that the benchmark starts, with its writes on disk. Where the machine is busy, the CPU
time beside the wall time tells what it would be alone. decK joins when TANDEM_DECK names its program.

`make bench ARGS="--only control-plane"` measures one half. Seconds of one machine mean little on another.
"""
