"""Speed beside other engines, the machine's limits and each other: what `anyorder bench` runs."""
