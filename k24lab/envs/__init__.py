"""Environments: one interface for all, and an adapter for each library."""
