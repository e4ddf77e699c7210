"""Pages and pictures of finished runs and sweeps."""
