"""What finished runs are for: networks that are loaded, used on other pictures, and taken away."""
