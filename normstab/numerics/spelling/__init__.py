"""Names as people type them: what they stand for, what to ask back, what to caution against."""
