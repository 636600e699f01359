"""What predictions say of models: calibration, groups, diversity, forgetting, and how sure a figure is."""
