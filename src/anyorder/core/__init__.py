"""Plain data and protocols that every layer shares; imports nothing else of anyorder."""
