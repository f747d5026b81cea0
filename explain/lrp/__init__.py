"""Layer-wise relevance propagation for ViTs (Chefer et al. 2021)."""
