"""What is counted at a site: the counters, the rows that the kernels write, histograms, and tallies as plain data."""
