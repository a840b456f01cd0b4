"""Certificates in the control plane."""
