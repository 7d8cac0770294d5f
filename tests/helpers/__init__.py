"""What tests share: generators of hostile arguments, oracles, and ways of running a call elsewhere."""
