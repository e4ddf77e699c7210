"""Image files: listing, checking, decoding and packing them."""
