"""`python -m k24lab` is the command line."""

from k24lab.cli import main

main()
