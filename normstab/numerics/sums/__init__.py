"""Means and matrix products: what is made of many sums. A sum itself is `accumulate`."""
