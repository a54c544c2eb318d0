"""Task families: what is hidden of a triplet, and held-out sets."""
