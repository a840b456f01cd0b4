"""Kubernetes objects as typed data: only the fields lb uses, no behaviour. Read meta.py first."""
