"""Measurements of OpenTSM beside other tunnels, on one machine: ``make bench``, docs/benchmarks.md."""
