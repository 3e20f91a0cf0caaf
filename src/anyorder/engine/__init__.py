"""Runs decoding methods: packs everybody's pending requests into one pass per model per tick."""
