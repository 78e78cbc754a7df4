"""Which step it is, how often each site was called in it; forwards that run again, and steps that are recorded."""
