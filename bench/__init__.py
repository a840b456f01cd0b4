"""Benchmarks: lb against a bare relay and against nginx, HAProxy and Envoy, in one run on one machine."""
