"""Measurements of anyorder beside other engines, in one run on one machine."""
