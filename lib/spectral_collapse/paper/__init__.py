"""The paper's figures, tables and values: formats what analysis found, and computes nothing."""
