"""The brief, the knowledge base, and findings of earlier searches."""
