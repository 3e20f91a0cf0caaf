"""One file a task of `anyorder eval`: flags of its own, and `measure`, which makes the table."""
