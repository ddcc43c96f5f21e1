"""The hub's client: credentials, HTTP without trust in who answers, commits as bundles."""
