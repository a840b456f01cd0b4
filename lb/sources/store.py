"""The store: every object of every source, by key, with where it came from and what changed since the last build.

Owns precedence between files that hold the same object (the file that sorts first wins; the others are LB1004) and the
indexes that translation needs. It knows nothing of routing.
"""
