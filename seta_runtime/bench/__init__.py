"""`python -m seta_runtime.bench`: what routing costs, against plain vLLM and vLLM's own LoRA, in one interleaved run.

Timings on a shared machine drift by tens of percent within seconds. So every engine runs in a process of its own and
computes only when it is told; the engines of a comparison are told in turns, a tenth of a second each (`turns.py`);
what is reported is the median over passes of paired ratios, and how sure it is (`paired.py`).
"""
