"""Language models of blocks."""
