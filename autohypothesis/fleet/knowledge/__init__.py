"""What a search knows: the brief, the knowledge base, and what earlier searches left."""
