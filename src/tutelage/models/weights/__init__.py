"""Files of weights, other sources of them, and how a network starts from them."""
