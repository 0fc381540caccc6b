"""A mutation tester for k24lab: it makes one-line mistakes in the package, and tests must notice each (README.md)."""
