"""Real clients and servers, swaps and failures under load, signals, the admin API."""
