"""The routing model: what lb serves, as plain values. Read config.py first."""
