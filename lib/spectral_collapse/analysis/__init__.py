"""From records to data frames, estimates and verdicts."""
