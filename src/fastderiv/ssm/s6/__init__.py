"""The selective scan (S6): docs/derivations.md §1.1 to §1.7."""
