"""Four real classification tasks for demonstrations, built from data files inside pinned wheels on PyPI."""
