"""Loss terms: part terms, the random view of the equivariance term, classification losses.

Call them with fp32 tensors inside `torch.autocast(device_type, enabled=False)`.
"""
