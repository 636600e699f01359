"""What a protocol's runs say for and against model recycling: tables with intervals, claims with verdicts."""
