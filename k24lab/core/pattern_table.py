"""The six 2:4 patterns, in the order of their indices everywhere; needs no torch."""

PATTERNS_24 = ((1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1), (0, 1, 1, 0), (0, 1, 0, 1), (0, 0, 1, 1))
PATTERN_NAMES = tuple("".join(map(str, pattern)) for pattern in PATTERNS_24)
N_PATTERNS = len(PATTERNS_24)
GROUP_SIZE = 4
