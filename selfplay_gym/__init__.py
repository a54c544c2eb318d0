"""A verifiable self-play reasoning gym with code-execution rewards."""
