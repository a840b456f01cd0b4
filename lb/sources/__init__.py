"""Where objects come from, and the store that holds them. Read store.py first."""
