"""Benchmarks of the model: problems, samples, programs that judge them, and the table of results.

`evaluate(llama, "humaneval", n=20).table()` is the whole of it; docs/evaluation.md explains.
"""
