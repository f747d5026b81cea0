"""What every package may lean on: the one error users see, and the one kind of registry."""
