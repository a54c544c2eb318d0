"""Run programs that nobody trusts."""
