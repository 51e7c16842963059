"""What `python -m benchmarks.run` is made of: workers that hold one side each, rounds, the record and its page."""
