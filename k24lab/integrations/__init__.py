"""K-2:4 inside other people's code bases."""
