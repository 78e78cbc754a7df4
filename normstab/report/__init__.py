"""Reporting: judgements to Markdown, plots, JSON, JUnit and HTML; pure, so that the same runs give the same bytes."""
