"""Public datasets and image files, one module for each."""
