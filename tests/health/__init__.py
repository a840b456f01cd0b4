"""Active health checks: the state machine, the codecs, single checks on real sockets, and who is checked when."""
