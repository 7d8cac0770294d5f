"""Every public function in plain NumPy and SciPy: slow, short, independent of the compiled code; the oracle of the tests."""
