"""k24lab beside other libraries and beside itself: `python -m benchmarks.peers`."""
