"""HTTP/2 towards clients, frame by frame."""
