"""Summaries of news and reports: CNN/DailyMail, XSum and GovReport."""
