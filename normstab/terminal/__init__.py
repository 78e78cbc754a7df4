"""What a person sees while cells run and when they end: live table, summary, step summary, plain tables."""
