"""Assessing: runs and their references to metrics, verdicts, expectations and remedies; pure, and without torch."""
