"""What tests share: generators of hostile arguments, oracles, and ways to run a call elsewhere."""
