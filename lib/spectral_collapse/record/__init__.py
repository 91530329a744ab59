"""What is asked for and what was found: parameters, folders, records, the command line."""
