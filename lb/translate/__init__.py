"""Objects in, model and problems out: pure functions, no I/O, no clock. Read translation.py first."""
