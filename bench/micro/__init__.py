"""The parts on their own, by pytest-benchmark: `python -m bench --only micro`."""
