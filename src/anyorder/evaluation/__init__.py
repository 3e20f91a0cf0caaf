"""Measures and pictures of what engines do: consistency, likelihood, cost, traces."""
