"""What a sweep varies, its folder, and what a search may look at. Needs no torch."""
