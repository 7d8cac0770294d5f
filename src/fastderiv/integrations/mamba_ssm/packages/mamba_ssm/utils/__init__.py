"""Generation of text, and weights and configurations from files."""
