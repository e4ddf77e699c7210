"""Image files: where they lie, which are readable, how they are decoded and packed."""
