"""Active health checks: asks endpoints, while lb runs, whether they serve. In the control plane's event loop only."""
