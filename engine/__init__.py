"""What runs on top of data, models and metrics. It parses no flags and draws no reports."""
