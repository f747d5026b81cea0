"""What every package may lean on: the one error users see, the one kind of registry, heat maps at pixels."""
