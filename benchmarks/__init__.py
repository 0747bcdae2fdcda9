"""One file per claim: `python -m benchmarks.<name>` measures it beside named peers and prints a table."""
