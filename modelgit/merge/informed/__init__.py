"""Merging with statistics of what models do on data: how much each weight matters, what each layer is fed."""
