"""Everything between data, models and metrics on one side and commands on the other. It parses no flags and draws no reports."""
