"""Workers and where they run: processes of this machine, jobs of a Slurm or a Ray cluster."""
