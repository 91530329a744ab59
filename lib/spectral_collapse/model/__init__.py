"""Language models: built, trained, sampled from, and what they expect of real text."""
