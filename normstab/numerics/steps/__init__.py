"""Which step it is, how often each site was called in it, and when a forward is run again."""
