"""The study behind docs/results.md: protocol, tuning and report, run as `python -m study` (see docs/protocol.md)."""
