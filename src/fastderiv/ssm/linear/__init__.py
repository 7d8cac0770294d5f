"""The linear recurrence h = a h + b along an axis: docs/derivations.md §6.7."""
