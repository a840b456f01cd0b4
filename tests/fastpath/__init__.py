"""The data plane's parts against their oracles: the reference matcher, the reference normalisation, h11."""
