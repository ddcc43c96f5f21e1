"""Who builds helper scripts: requests, checks, the registry, the launcher, the catalogue."""
