"""`python -m adapters.benchmark`: continual-learning methods on the same base, data, steps, prompts and decoding.

A cell is one method on one sequence of tasks with one seed; it is measured once and kept (`docs/benchmark.md`).
"""
