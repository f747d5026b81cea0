"""Reading weights of other projects: naming, layout, positions."""
