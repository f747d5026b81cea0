"""Read weights of other projects: names, layouts, position embeddings."""
