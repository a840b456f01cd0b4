"""lb: a standalone L7/L4 load balancer that serves a Kubernetes cluster's routing objects."""

__version__ = "0.1.0"
