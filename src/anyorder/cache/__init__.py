"""Memory for keys and values: pages, who holds them, and who may share them. Knows no model."""
