"""Job scripts for SLURM, and `python -m slurm.submit`."""
