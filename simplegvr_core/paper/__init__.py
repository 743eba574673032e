"""The paper's tables and figures for given weights."""
