"""A network's weights: their files, other sources, and how a network starts from them."""
