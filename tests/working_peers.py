"""Sides of a comparison that do nothing, for test_peers.py."""

import sys
import time


def work(meter, cost=0.001):
    """Units of work that take `cost` seconds of CPU time each; talks on stdout, as libraries do."""
    print("a library says hello")
    while True:
        end = time.process_time() + cost
        while time.process_time() < end:
            pass
        meter()


def fail(meter, after=0):
    """Works only so many times."""
    for _ in range(after):
        meter()
    sys.exit("this peer is broken")
