"""Raw bytes against lb: what it takes from clients, what it takes from backends, and how bodies flow."""
