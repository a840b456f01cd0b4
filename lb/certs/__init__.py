"""Certificates in the control plane: what PEM texts say, and the one lb makes for itself."""
