"""`python -m seta_runtime.bench`: what routing costs, against plain vLLM and vLLM's own LoRA, in one interleaved run.

Timings on a shared machine drift by tens of percent within minutes. So every variant runs in a process of its own, all
of them wait, and each round asks each variant for the same point, one after another; what is reported is the median
over rounds of paired ratios.
"""
